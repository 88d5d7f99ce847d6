"""Make the MLflow store of this workspace ready, and print its URI.

Run: python -m stages.chores.store

After a workspace was moved or copied, its store names the artifacts beside it again.
"""

import sys

from stages.lib.core.errors import UserError
from stages.lib.running import run_command
from stages.lib.tracking.mlflow_store import connect, open_store, store_uri
from stages.tools.command_line import parser_of


def main() -> None:
    """Print the URI, and on stderr why runs cannot be added to a store that can be read."""
    parser_of(__doc__, "stages.chores.store").parse_args()
    open_store()
    try:
        connect()
    except UserError as error:  # the UI still shows the runs
        print(f"note: {error}", file=sys.stderr, flush=True)
    print(store_uri())


if __name__ == "__main__":
    run_command(main)

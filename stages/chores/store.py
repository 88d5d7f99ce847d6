"""Make the MLflow store of this workspace ready, and print its URI.

Run: python -m stages.chores.store

A store that was moved or copied with its workspace then names the artifacts beside it.
"""

import sys

from stages.lib.core.errors import UserError
from stages.lib.running import run_command
from stages.lib.tracking.mlflow_store import connect, open_store, store_uri


def main() -> None:
    """Print the URI; on stderr, what is wrong with a store that can only be read."""
    open_store()
    try:
        connect()
    except UserError as error:  # the UI is where people look for what is wrong
        print(f"note: {error}", file=sys.stderr, flush=True)
    print(store_uri())


if __name__ == "__main__":
    run_command(main)

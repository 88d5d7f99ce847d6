"""Make the MLflow store of this workspace ready, and print its URI.

Run: python -m stages.tools.store

A store that was moved or copied with its workspace then names the artifacts beside it.
"""

from stages.lib.core.running import run_command
from stages.lib.tracking.mlflow_store import connect, store_uri


def main() -> None:
    """Print the URI."""
    connect()
    print(store_uri())


if __name__ == "__main__":
    run_command(main)

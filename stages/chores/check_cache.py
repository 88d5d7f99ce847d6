"""Compare each file in DVC's cache with the digest that it is stored under; remove what differs.

Run: python -m stages.chores.check_cache

The files of the workspace are links to DVC's cache where the disk has no copies on write. They are
read-only, which does not stop root: a file that root edits in place is damaged in the cache, too.
DVC trusts read-only files, and would restore the damage for ever.
"""

import hashlib
import re
from pathlib import Path

from dvc.repo import Repo

from stages.lib.core.errors import UserError
from stages.lib.progress import progress_bar
from stages.lib.running import run_command


def main() -> None:
    """Say how many files are whole; raises UserError where one was not."""
    files = [
        file for file in sorted(Path(Repo().cache.local.path).glob("??/*")) if _is_object(file)
    ]
    damaged = []
    with progress_bar("verify", len(files), "files") as bar:
        for file in files:
            if _digest_in_name(file) != _digest(file):
                damaged.append(file)
            bar.update()
    for file in damaged:
        file.unlink()
        print(f"removed {file}: damaged")
    if damaged:
        raise UserError(
            f"{len(damaged)} of {len(files)} files in DVC's cache were damaged and are removed; "
            "bring them back with `dvc pull --force`, or make them again with `dvc repro`"
        )
    print(f"all {len(files)} files in DVC's cache are whole")


def _is_object(file: Path) -> bool:
    """Return whether DVC has written a file to its end: until then it has another kind of name."""
    return re.fullmatch(r"[0-9a-f]{30}(\.dir)?", file.name) is not None


def _digest_in_name(file: Path) -> str:
    return file.parent.name + file.name.removesuffix(".dir")


def _digest(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "md5").hexdigest()


if __name__ == "__main__":
    run_command(main)

"""Compare each file in DVC's cache with its digest, and remove the damaged ones.

Run: python -m stages.chores.check_cache

Where the disk has no copies on write, the files of the workspace are links to DVC's cache. They are
read-only, which does not stop root: a file that root edits in place is damaged in the cache, too.
DVC trusts read-only files, and would restore the damage again and again.
"""

import hashlib
import re
from pathlib import Path

from dvc.repo import Repo

from stages.lib.core.errors import UserError
from stages.lib.progress import progress_bar
from stages.lib.running import run_command
from stages.tools.command_line import parser_of

OBJECT_NAME = re.compile(r"[0-9a-f]{30}(\.dir)?")  # while DVC writes a file, it has another name


def main() -> None:
    """Print how many files are whole; raises UserError where one is not."""
    parser_of(__doc__, "stages.chores.check_cache").parse_args()
    cache = Path(Repo().cache.local.path)
    files = [file for file in sorted(cache.glob("??/*")) if OBJECT_NAME.fullmatch(file.name)]
    damaged = []
    with progress_bar("check cache", len(files), "files") as bar:
        for file in files:
            expected = file.parent.name + file.name.removesuffix(".dir")
            if md5_of(file) != expected:
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


def md5_of(file: Path) -> str:
    """Return the MD5 of a file in hexadecimal."""
    with file.open("rb") as content:
        return hashlib.file_digest(content, "md5").hexdigest()


if __name__ == "__main__":
    run_command(main)

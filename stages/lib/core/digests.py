"""Digests beside files: what one stage has written is what the next one reads.

`NAME.sha256` is beside `NAME.csv`, and `all.sha256` in a folder of tables, both as the command
`sha256sum --check` reads them. DVC compares digests where it runs a stage, but not where a person
does, and it trusts a file that changes while its time does not.
"""

from collections.abc import Iterable
from pathlib import Path

from stages.lib.core.errors import UserError, short
from stages.lib.core.files import sha256_of, write_text

SUFFIX = ".sha256"
OF_FOLDER = f"all{SUFFIX}"


def write_digest(path: Path) -> None:
    """Write the digest of a file beside it."""
    _write(path.with_suffix(SUFFIX), [path])


def check_digest(path: Path, stage: str) -> None:
    """Raise UserError where a file is missing, or not the one whose digest was written.

    stage: the one that writes it, into a folder that DVC caches.
    """
    remedy = f"bring it back: `dvc checkout --force {path.parent}`, or write it again: "
    _check(path.with_suffix(SUFFIX), path, remedy + f"`dvc repro --force {stage}`")


def write_folder_digests(folder: Path) -> None:
    """Write the digests of all tables in a folder."""
    _write(folder / OF_FOLDER, sorted(folder.glob("*.csv")))


def checked_tables(folder: Path, stage: str) -> list[Path]:
    """Return the tables in a folder, compared with their digests; raises UserError."""
    digests, remedy = folder / OF_FOLDER, f"write it again: `dvc repro --force {stage}`"
    tables = [folder / name for name in _read(digests, folder, remedy)]
    for table in tables:
        _check(digests, table, remedy)
    return tables


def _write(digests: Path, files: Iterable[Path]) -> None:
    write_text(digests, "".join(f"{sha256_of(file)}  {file.name}\n" for file in files))


def _read(digests: Path, subject: Path, remedy: str) -> dict[str, str]:
    """Return the digests that a file lists, by the names of their files; subject: for the error."""
    try:
        lines = digests.read_text(encoding="utf-8").splitlines()
        pairs = [line.split("  ", 1) for line in lines]
        return {name: digest for digest, name in pairs}
    except (OSError, ValueError) as error:
        raise UserError(
            f"{subject}: no digest of it in {digests.name} ({short(error)}); {remedy}"
        ) from None


def _check(digests: Path, path: Path, remedy: str) -> None:
    if not path.is_file():
        raise UserError(f"{path}: no such file; {remedy}")
    if _read(digests, path, remedy).get(path.name) != sha256_of(path):
        raise UserError(f"{path}: damaged, or changed since it was written; {remedy}")

"""Reading files that may be anything, writing outputs whole or not at all, digests of files."""

import errno
import hashlib
import json
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, BinaryIO

from stages.lib.core.errors import UserError, short


@contextmanager
def atomic_folder(target: Path) -> Iterator[Path]:
    """Yield an empty folder that becomes `target` on success and disappears on failure."""
    partial = target.with_name(f".{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    try:
        yield partial
        shutil.rmtree(target, ignore_errors=True)
        os.replace(partial, target)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def check_disk_space(folder: Path, num_bytes: int) -> None:
    """Raise UserError where a folder cannot be written or has no room, before hours of work.

    num_bytes: that the work will write there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise UserError(f"{folder.resolve()}: cannot be written: {error.strerror}") from None
    free = shutil.disk_usage(folder).free
    if free < num_bytes:
        raise UserError(
            f"{folder.resolve()}: {free / 1e6:,.0f} MB are free, {num_bytes / 1e6:,.0f} MB are "
            "needed; make room"
        )


def remove_folder(folder: Path) -> None:
    """Remove a folder in one step, because other runs assume that an existing folder is complete.

    After an interruption, the rest is next to it under the name `.NAME.gone`.
    """
    gone = folder.with_name(f".{folder.name}.gone")
    folder.rename(gone)
    shutil.rmtree(gone)


def write_text(path: Path, text: str) -> None:
    """Write a text file in one step, so that a crash leaves the old one or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(text, encoding="utf-8", newline="\n")
    os.replace(partial, path)


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write JSON with the keys in the given order; NaN and infinity raise ValueError."""
    write_text(path, json.dumps(content, indent=2, allow_nan=False) + "\n")


def read_json(path: Path, *keys: str) -> dict[str, Any]:
    """Read what write_json wrote; raises UserError where it is damaged or lacks one of the keys."""
    remedy = "run `dvc repro` to write it again"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; {remedy}") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: damaged: {short(error)}; {remedy}") from None
    for key in keys:
        if not isinstance(content, dict) or key not in content:
            raise UserError(f"{path}: damaged: it has no {key}; {remedy}")
    return content


def open_regular(path: Path) -> BinaryIO:
    """Open a file to read; raises OSError for all that is no regular file, also through a link.

    A pipe that nobody writes would wait for ever, and a device such as /dev/zero never ends.
    """
    return open(path, "rb", opener=_open_regular)


def _open_regular(path: str, flags: int) -> int:
    descriptor = os.open(path, flags | getattr(os, "O_NONBLOCK", 0))  # Windows has none
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        return descriptor
    os.close(descriptor)
    raise OSError(errno.EINVAL, "no regular file", path)


def sha256_of(*paths: Path) -> str:
    """Return the SHA-256 (hexadecimal) of the contents of files, one after the other."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def main_workspace() -> Path:
    """Return the root of the repository; in a temporary workspace of DVC, that of the main one."""
    return Path(os.environ.get("DVC_ROOT", Path(__file__).parents[3])).resolve()

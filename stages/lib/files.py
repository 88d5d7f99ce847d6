"""Writing outputs whole or not at all."""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def fresh_folder(target: Path) -> Iterator[Path]:
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


def remove_folder(folder: Path) -> None:
    """Remove a folder whose presence says that it is whole: it is gone at once or not at all.

    What an interruption leaves is named `.NAME.gone` and lies beside it.
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
    """Write JSON in the given order of keys; NaN and infinity raise ValueError."""
    write_text(path, json.dumps(content, indent=2, allow_nan=False) + "\n")


def sha256_of(*paths: Path) -> str:
    """Return the SHA-256 (hexadecimal) of files' contents, one after the other."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()


def main_workspace() -> Path:
    """Return the repository's root, the main workspace's also in DVC's temporary ones."""
    return Path(os.environ.get("DVC_ROOT", Path(__file__).parents[2])).resolve()

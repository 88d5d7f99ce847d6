"""Finding and reading the image files that a command line names, whatever their names are."""

import glob
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from stages.lib.core.errors import UserError, short
from stages.lib.core.files import open_regular
from stages.lib.images.decoding import SUFFIXES, UnusableImage
from stages.lib.images.ignored_files import is_ignored

ESCAPED_BYTE = re.compile(rb"\\x([89a-f][0-9a-f])")  # that is no ASCII


def find_files(paths: Sequence[str]) -> list[str]:
    """Return the files that paths stand for; raises UserError for a folder without images.

    A path is a file, a folder, a glob, or - for a list of files on standard input.
    """
    files = []
    for path in paths:
        if path == "-":
            files += os.fsdecode(sys.stdin.buffer.read()).splitlines()
        elif Path(path).is_dir():
            files += images_in(Path(path))
        elif glob.has_magic(path) and not Path(path).exists():
            matches = glob.glob(path, recursive=True)
            files += sorted(match for match in matches if not Path(match).is_dir()) or [path]
        else:
            files.append(path)
    return files


def images_in(folder: Path) -> list[str]:
    """Return the images in a folder and print what is left out; raises UserError for none."""
    files = [path for path in sorted(folder.rglob("*")) if not path.is_dir()]
    kept = [path for path in files if not is_ignored(path.relative_to(folder))]
    images = [str(path) for path in kept if path.suffix.lower() in SUFFIXES]
    left_out = []
    if len(kept) < len(files):
        num_dropped = len(files) - len(kept)
        left_out.append(f"passed over {num_dropped} hidden files, thumbnails and the like")
    if len(images) < len(kept):
        num_others = len(kept) - len(images)
        left_out.append(f"left out {num_others} files without the suffix of an image")
    words = ", ".join(left_out)
    name = short(printable_name(str(folder)), 300)
    if not images:
        reason = f" ({words})" if words else ""
        raise UserError(f"{name}: a folder without images{reason}; name one that has some")
    if words:
        print(f"{name}: {words}", file=sys.stderr)
    return images


def read_file(file: str) -> bytes:
    """Return the bytes of a file; raises UnusableImage."""
    try:
        with open_regular(Path(file)) as content:
            return content.read()
    except (OSError, ValueError) as error:  # ValueError: a name that no file can have
        raise UnusableImage(getattr(error, "strerror", None) or str(error)) from None
    except MemoryError:
        raise UnusableImage("too large for the memory of this machine") from None


def printable_name(file: str) -> str:
    """Return a file name in which bytes that are no UTF-8 are written as \\x.. ."""
    return file.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def file_of_name(name: str) -> str:
    """Return the file whose name printable_name has written."""
    if os.path.exists(name):  # these letters are its name
        return name
    content = ESCAPED_BYTE.sub(lambda match: bytes.fromhex(match[1].decode()), os.fsencode(name))
    return os.fsdecode(content)

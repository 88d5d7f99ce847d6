"""Where a video says that it comes from: C2PA manifest, IPTC source type, tags of the camera.

As for images (provenance.py), none of it decides a verdict, and nothing is fetched.
"""

import struct
from collections.abc import Iterator
from typing import BinaryIO

from stages.lib.core.errors import short
from stages.lib.data.videos import tags_of
from stages.lib.verdict.provenance import (
    MAX_TEXT,
    Provenance,
    read_manifest,
    source_types_in,
)

XMP_UUID = bytes.fromhex("be7acfcb97a942e89c71999491e3afac")  # of a box of MP4, by Adobe
XMP_IN_MOV = ("moov", "udta", "XMP_")
MOST_XMP = 1 << 20  # bytes that are read
MOST_BOXES = 10_000  # beside each other that are looked at
# The camera's fields, and the tags that have them: of Apple's telephones, then of all others.
CAMERA_TAGS = {
    "make": ("com.apple.quicktime.make", "com.android.manufacturer", "make"),
    "model": ("com.apple.quicktime.model", "com.android.model", "model"),
    "software": ("com.apple.quicktime.software", "software", "encoder"),
    "taken": ("com.apple.quicktime.creationdate", "creation_time", "date"),
}


def read_video_provenance(file: BinaryIO) -> Provenance:
    """Return what a video file says about its origin; file: open, with a descriptor."""
    tags = tags_of(file)
    camera = {
        field: short(tags[name], MAX_TEXT)
        for field, names in CAMERA_TAGS.items()
        for name in [next((name for name in names if tags.get(name)), None)]
        if name
    }
    file.seek(0)
    manifest = read_manifest(file)
    return Provenance(
        c2pa=manifest,
        source_types=source_types_in(_xmp(file)),
        camera=camera,
        camera_from="header",
    )


def _xmp(file: BinaryIO) -> str:
    """Return the XMP of an MP4 or MOV file, or "" where it has none."""
    size = file.seek(0, 2)
    for kind, start, end in _boxes(file, 0, size):
        if kind == "uuid" and end - start >= len(XMP_UUID):
            file.seek(start)
            if file.read(len(XMP_UUID)) == XMP_UUID:
                return file.read(min(end - file.tell(), MOST_XMP)).decode("utf-8", "replace")
    places = [(0, size)]
    for name in XMP_IN_MOV:
        places = [
            (start, end)
            for place in places
            for kind, start, end in _boxes(file, *place)
            if kind == name
        ]
    for start, end in places:
        file.seek(start)
        return file.read(min(end - start, MOST_XMP)).decode("utf-8", "replace")
    return ""


def _boxes(file: BinaryIO, start: int, end: int) -> Iterator[tuple[str, int, int]]:
    """Yield the boxes of MP4 (ISO/IEC 14496-12) in a part of a file: kind, start and end."""
    for _ in range(MOST_BOXES):
        if start + 8 > end:
            return
        file.seek(start)
        header = file.read(16)
        size, kind = struct.unpack(">I4s", header[:8])
        length = 8
        if size == 1 and len(header) == 16:
            size, length = struct.unpack(">Q", header[8:])[0], 16
        size = size or end - start  # 0: up to the end
        if size < length or start + size > end:
            return  # no box, or cut off
        yield kind.decode("latin-1"), start + length, start + size
        start += size

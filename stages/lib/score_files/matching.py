"""Finding the image of the pipeline that each row of a score file names."""

import unicodedata
from collections import defaultdict
from dataclasses import dataclass

import pandas as pd

from stages.lib import paths
from stages.lib.core.errors import UserError, short
from stages.lib.core.labels import read_labels
from stages.lib.score_files.reading import Row, ScoreFile, shown

JUDGED_SPLITS = ("val", "calibration", "test", "held_out", "evaluation")
SPLITS = ("train", *JUDGED_SPLITS)  # a name that train has too must not be taken for another image
Key = tuple[str, int]  # set and row, which are one image


class KnownImages:
    """The images of the label tables by name."""

    def __init__(self, tables: dict[str, pd.DataFrame]) -> None:
        """Index the label tables, by the names of their splits."""
        self.by_name: dict[str, set[Key]] = defaultdict(set)
        self.by_last_part: dict[str, set[tuple[str, Key]]] = defaultdict(set)
        self.sets: set[str] = set()
        self.judged: set[Key] = set()
        for split, table in tables.items():
            keys = list(zip(table["set"], table["row"], strict=True))
            self.sets |= set(table["set"])
            for name, key in zip(map(_normal, table["img_name"]), keys, strict=True):
                self.by_name[name].add(key)
                self.by_last_part[name.rpartition("/")[2]].add((name, key))
            if split in JUDGED_SPLITS:
                has_label = table["target"].notna()
                self.judged |= {key for key, known in zip(keys, has_label, strict=True) if known}

    def find(self, row: Row, file: str) -> Key | None:
        """Return the image that a row names, None where it names none or one that is not judged.

        The exact name goes before the end of a path, and the longest end before shorter ones.
        Raises UserError where the name is that of several images, one of them judged, and where
        there is no such set.
        """
        found = self.candidates(row)
        if (
            not found
            and row.set
            and not self._sets_of(row)
            and self.candidates(row._replace(set=""))
        ):
            raise UserError(
                f"{file}:{row.line}: set = {short(row.set)}: there is no such set; write one of "
                f"{short(', '.join(sorted(self.sets)))}, or remove the column"
            )
        if len(found) > 1 and found & self.judged:
            sets = sorted(of for of, _ in found)
            remedy = ", or its set in a column `set`" if len(set(sets)) > 1 else ""
            raise UserError(
                f"{file}:{row.line}: {short(row.name)} is an image of "
                f"{short(' and of '.join(sets))}; give its whole name{remedy}"
            )
        return next(iter(found & self.judged), None)

    def candidates(self, row: Row) -> set[Key]:
        """Return the images that a row may name: of its set, where it says one."""
        name = _normal(row.name)
        parts = name.replace("\\", "/").split("/")
        ends = ["/".join(parts[start:]) for start in range(len(parts))]
        sets = self._sets_of(row) if row.set else self.sets
        for form in (name, *ends):
            if found := {key for key in self.by_name.get(form, set()) if key[0] in sets}:
                return found
        # A name may also be the end of an image's own one. Other folders are another image's. This
        # comes last, because all videos may have a frame of the same name.
        return {key for whole, key in self.by_last_part.get(parts[-1], set())
                if key[0] in sets and whole.endswith(f"/{ends[0]}")}  # fmt: skip

    def _sets_of(self, row: Row) -> set[str]:
        """Return the sets that a row may mean: an evaluation set has a short name too."""
        return self.sets & {row.set, f"{row.set}.set"}


def _normal(name: str) -> str:
    """Return the one form of letters with accents, which have two in Unicode."""
    return name if name.isascii() else unicodedata.normalize("NFC", name)


def known_images() -> KnownImages:
    """Return the images of the pipeline in this folder."""
    return KnownImages({split: read_labels(paths.LABELS / f"{split}.csv") for split in SPLITS})


@dataclass(frozen=True)
class Matched:
    """The values of a score file by image, and the rows that name no image of the pipeline."""

    values: dict[Key, float]
    extra: list[Row]


def match(scores: ScoreFile, known: KnownImages) -> Matched:
    """Match the rows of a file; raises UserError where two rows name one image."""
    file = shown(scores.request.path)
    lines: dict[Key, int] = {}
    values: dict[Key, float] = {}
    extra = []
    for row in scores.rows:
        key = known.find(row, file)
        if key is None:
            if not known.candidates(row):
                extra.append(row)
            continue
        if key in lines:
            raise UserError(
                f"{file}:{row.line}: {short(row.name)} of {short(key[0])} has a score in line "
                f"{lines[key]} already; remove one"
            )
        lines[key], values[key] = row.line, row.value
    return Matched(values, extra)

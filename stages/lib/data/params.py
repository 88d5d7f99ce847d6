"""The parameters of data sets: where the images are, and how to pack them."""

import re
from typing import Annotated, Literal

import pydantic

from stages.lib.core.params import StageParams, Threads
from stages.lib.data.layouts.find import LayoutName
from stages.lib.data.layouts.manifest import ManifestParams

# What metrics/evaluation.json and metrics/data.json hold beside the evaluation sets.
RESERVED_NAMES = (
    "train", "val", "calibration", "test", "held_out", "pooled", "cross", "robustness", "weights",
    "threshold", "temperature", "verdicts", "num_calibration", "better_than_chance",
    "trained_sources",
)  # fmt: skip


def _check_set_name(name: str) -> str:
    if not re.fullmatch(r"(?!held_out)[A-Za-z][\w-]*", name) or name in RESERVED_NAMES:
        raise ValueError(
            "name the set with letters, digits, - and _, not beginning with held_out, and not "
            f"{', '.join(RESERVED_NAMES)}"
        )
    return name


SetName = Annotated[str, pydantic.AfterValidator(_check_set_name)]


def packed_name(set_name: str) -> str:
    """Return the name of the folder in data/packed of an evaluation set; dvc.yaml has it too.

    DVC removes that folder before any code can check the name of the set. With the ending, even a
    name such as `../../tests` leads to a folder of the user only where that is called `tests.set`.
    """
    return f"{set_name}.set"


class DataParams(StageParams):
    """Section `data`: folders with images."""

    root: str
    layout: LayoutName
    manifest: ManifestParams
    evaluation_sets: dict[SetName, str]


class PackParams(StageParams):
    """Section `pack`."""

    shard_mb: Annotated[int, pydantic.Field(ge=1)]
    max_megapixels: Annotated[float, pydantic.Field(gt=0, le=1000)]
    outside: Literal["refuse", "allow"]
    frames_per_video: Annotated[int, pydantic.Field(ge=1, le=10_000)]
    find_faces: bool
    num_threads: Threads

    @property
    def max_pixels(self) -> int:
        """Of the largest image that is accepted."""
        return round(self.max_megapixels * 1e6)

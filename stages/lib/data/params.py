"""The parameters of data sets: where the images are, and how to pack them."""

import os
import re
from pathlib import Path
from typing import Annotated, Literal

import pydantic

from stages.lib import paths
from stages.lib.core.errors import UserError
from stages.lib.core.params import StageParams, Threads
from stages.lib.data.layouts.find import LayoutName
from stages.lib.data.layouts.manifest import ManifestParams

# What metrics/evaluation.json and metrics/data.json hold beside the evaluation sets, and what
# MLflow has beside the sources.
RESERVED_NAMES = (
    "train", "val", "calibration", "test", "held_out", "pooled", "cross", "robustness", "weights",
    "threshold", "temperature", "verdicts", "num_calibration", "better_than_chance", "mean",
    "worst", "false_alarms", "trained_sources",
)  # fmt: skip
# The folders in data/packed of what data.root has; dvc.yaml has them too. What is trained on is in
# one folder, so that a change to any other set trains nothing again.
ROOT_FOLDERS = {"train": "training/train", "val": "training/val", "test": "test"}
TRAINING_PARTS = ("train", "val")  # of a set of data.training_sets


def _check_set_name(name: str) -> str:
    is_taken = name in RESERVED_NAMES or name.startswith("held_out")
    if not re.fullmatch(r"[A-Za-z][\w-]*", name) or is_taken:
        raise ValueError(
            "name the set with letters, digits, - and _, not held_out at the beginning, and not "
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


def packed_training_name(set_name: str) -> str:
    """Return the name of the folder in data/packed of a training set; dvc.yaml has it too."""
    return f"training/{packed_name(set_name)}"


class DataParams(StageParams):
    """Section `data`: folders with images."""

    root: str
    layout: LayoutName
    manifest: ManifestParams
    training_sets: dict[SetName, str]
    evaluation_sets: dict[SetName, str]

    @property
    def is_generated_sample(self) -> bool:
        """Whether data.root has the drawn faces of the stage `sample`."""
        return Path(self.root).resolve() == paths.SAMPLE.resolve()

    @property
    def root_source(self) -> str:
        """The source that data.root is, where there are more: the name of its folder."""
        return os.path.basename(os.path.abspath(self.root))

    def check_sources(self) -> None:
        """Raise UserError where data.root cannot stand beside the training sets."""
        if self.training_sets and self.is_generated_sample:
            raise UserError(
                "data.root is the generated sample, whose drawn faces do not mix with "
                "data.training_sets; set data.root to one of these sets, and remove it there"
            )
        if self.root_source in self.training_sets:
            raise UserError(
                f"data.training_sets.{self.root_source}: the folder of data.root = '{self.root}' "
                "has this name too, which is its source; remove or rename the training set"
            )


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

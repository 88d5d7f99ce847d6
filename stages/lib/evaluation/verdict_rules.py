"""The rules of a verdict: from the score of an image and facts about it to real, fake or unsure.

A verdict is unsure where the score lies between two thresholds, and where something about the
image means that its score cannot be trusted. Refusing to answer where the risk is high is known
as selective classification, or the reject option (Chow 1970; Geifman and El-Yaniv 2017).
"""

from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import pydantic
from scipy.special import expit, logit

from stages.lib.core.errors import UserError, short
from stages.lib.core.labels import CLASS_NAMES, FAKE, REAL
from stages.lib.core.schema import FrozenModel, TrainingSummary

UNSURE = "unsure"
# Why a verdict is unsure, in the order in which people read the reasons.
REASONS = {
    "no_face": "no face found",
    "unlike_training": "unlike everything it was trained on",
    "small_face": "face smaller than in the training images",
    "unlike_size": "image or face of another size than in the training images",
    "unlike_quality": "image compressed more than the training images",
    "unstable": "verdict changes when the image is compressed or resized a little",
    "between": "score between the thresholds",
}
# Why no verdict of a detector can be believed, and the sentence that stands before each of them.
Doubt = Literal["trained on drawn faces alone", "no better than chance"]
DOUBTS: dict[Doubt, str] = {
    "trained on drawn faces alone": "This detector was trained on drawn faces alone, those of the "
    "generated sample: its verdict on a photograph means nothing.",
    "no better than chance": "This detector is no better than chance on its validation images: "
    "its verdicts mean nothing.",
}
MOST_NAMED = 8  # manipulations or sources, in a sentence
LARGER = 2.0  # times the largest training images: still alike, because a model sees less of them


class Thresholds(FrozenModel):
    """The rates that are wanted, and the thresholds that keep them on the calibration set."""

    false_alarms: float  # wanted: the largest share of reals that are called fake
    misses: float  # wanted: the largest share of fakes that are called real
    fake_from: float  # P(fake) from which an image is called fake
    real_below: float  # P(fake) below which it is called real; at most fake_from
    middle: float  # P(fake) that divides the classes best
    temperature: float  # sigmoid(logit / temperature) is the calibrated probability
    # The upper ends of the 95 % intervals of both rates: what the calibration set cannot rule out.
    false_alarms_high: float
    misses_high: float
    num_real: int  # calibration images, or videos, that the thresholds come from
    num_fake: int
    counted: Literal["images", "videos"] = "images"

    def calibrated(self, score: float) -> float:
        """Return the calibrated probability of a score or threshold, 0 to 1."""
        return float(expit(logit(min(score, 1.0)) / self.temperature))

    def in_words(self, verdict: str) -> str:
        """Return how often an image or a person in a video gets the verdict wrongly."""
        wanted, high, count, kind = {
            "fake": (self.false_alarms, self.false_alarms_high, self.num_real, "reals"),
            "real": (self.misses, self.misses_high, self.num_fake, "fakes"),
        }[verdict]
        videos = "videos of " if self.counted == "videos" else ""
        return (
            f"at most {wanted:.1%} of {count} calibration {videos}{kind} were called {verdict}, so "
            f"up to {high:.1%} of such faces (95 %)"
        )


def known_manipulations(trained_on: TrainingSummary) -> str:
    """Return in words which manipulations a detector was trained to find."""
    families: dict[str, list[str]] = {}
    for fakes in trained_on.fakes:
        if fakes.family:
            families.setdefault(fakes.family, []).append(fakes.source or "")
    unnamed = _joined([fakes.source or "" for fakes in trained_on.fakes if not fakes.family])
    if not families:
        whose = f"{unnamed} that it was trained on" if unnamed else "its training set"
        return f"the manipulations in the fakes of {whose}"
    named = []
    for family, sources in families.items():
        of_sources = _joined(sources)
        named.append(f"{family} of {of_sources}" if of_sources else family)
    if unnamed:
        named.append(f"those in the fakes of {unnamed}")
    return f"the manipulations it knows ({', '.join(_first(named))})"


def learnt_from(trained_on: TrainingSummary) -> str:
    """Return in words which images a detector was trained on."""
    words = f"learnt from {trained_on.num_images:,} images"
    if trained_on.sources:
        sources = [f"{name} {count:,}" for name, count in trained_on.sources.items()]
        words += f" ({', '.join(_first(sources))})"
    families: dict[str, int] = {}
    for fakes in trained_on.fakes:
        name = fakes.family or "of unnamed methods"
        families[name] = families.get(name, 0) + fakes.num_images
    if families:
        named = [f"{name} {count:,}" for name, count in families.items()]
        words += f"; fakes: {', '.join(_first(named))}"
    return words


def _joined(names: list[str]) -> str:
    """Return the names that are not empty, as in "lfw and dfdc"."""
    *others, last = _first([name for name in names if name]) or [""]
    return f"{', '.join(others)} and {last}" if others else last


def _first(names: list[str]) -> list[str]:
    """Return MOST_NAMED of the names, and how many more there are."""
    more = len(names) - MOST_NAMED
    return [*names[:MOST_NAMED], f"{more} more"] if more > 0 else names


class VideoRules(FrozenModel):
    """What differs for the mean over the frames of a video."""

    thresholds: Thresholds
    farthest: float | None  # see Rules


class Rules(FrozenModel):
    """verdict_rules.json: what is needed beside a detector to turn its scores into verdicts."""

    weights_sha256: str  # of the detector that the rules belong to
    views: list[str]  # of stages/lib/detector/inference.py, whose mean is the score
    thresholds: Thresholds
    stability: bool  # whether the verdict must be the same on slightly changed views
    farthest: float | None  # distance to the training images that is allowed; None: not measured
    trained_on: TrainingSummary
    doubt: Doubt | None  # where there is one, no probability is given
    videos: VideoRules | None = None  # None: too few calibration videos to choose them

    def as_json(self) -> str:
        """Return the text of the file.

        Without rules for videos it has the digest that it had before there were any, so that older
        records can still be verified.
        """
        left_out: dict[str, Any] = {"thresholds": {"counted"}}
        if self.videos is None:
            left_out["videos"] = True
        return self.model_dump_json(indent=2, exclude=left_out) + "\n"

    def for_videos(self) -> "Rules":
        """Return the rules for persons in videos; those of images where there are no others."""
        if self.videos is None:
            return self
        return self.model_copy(
            update={"thresholds": self.videos.thresholds, "farthest": self.videos.farthest}
        )

    def apply(self, images: pd.DataFrame) -> tuple[pd.Series, pd.DataFrame]:
        """Return each image's verdict, real, fake or unsure, and its reasons to be unsure.

        The reasons are bool, a column for each of REASONS. images: one row each. logit, low and
        high: log(P(fake) / P(real)) of the image, and the least and the most over its changed
        views (empty: not scored). distance: to the training images, empty where it is not known.
        face: size of the face in pixels, 0 none, empty not looked for. width and height in pixels.
        jpeg_quality, empty for other formats.
        """
        thresholds, trained_on = self.thresholds, self.trained_on
        score, middle = expit(images["logit"]), logit(thresholds.middle)
        lowest = np.fmin(images["low"], images["logit"])
        highest = np.fmax(images["high"], images["logit"])
        face, quality = images["face"].astype(float), images["jpeg_quality"].astype(float)
        side = images[["width", "height"]].min(axis=1)
        least_quality = trained_on.jpeg_quality[0] if trained_on.jpeg_quality else 0
        # The size of a face tells more than that of the image around it.
        is_other_size = (side < trained_on.side[0]) | (side > LARGER * trained_on.side[1])
        least_face, most_face = trained_on.face or (0, np.inf)
        if trained_on.face:
            is_other_size = np.where(face > 0, face > LARGER * most_face, is_other_size)
        farthest = np.inf if self.farthest is None else self.farthest
        reasons = pd.DataFrame(
            {
                "no_face": (face == 0) & (trained_on.face is not None),
                "unlike_training": images["distance"].astype(float) > farthest,
                "small_face": (face > 0) & (face < least_face),
                "unlike_size": is_other_size,
                "unlike_quality": quality < least_quality,
                "unstable": (lowest < middle) & (highest >= middle) & self.stability,
                "between": (score >= thresholds.real_below) & (score < thresholds.fake_from),
            },
            index=images.index,
        )
        calls = np.where(score >= thresholds.fake_from, CLASS_NAMES[FAKE], CLASS_NAMES[REAL])
        verdicts = pd.Series(calls, index=images.index).mask(reasons.any(axis=1), UNSURE)
        return verdicts, reasons


def doubt_of(is_generated_sample: bool, is_better_than_chance: bool) -> Doubt | None:
    """Return why no verdict of a detector can be believed, or None; of two reasons the first."""
    if is_generated_sample:
        return "trained on drawn faces alone"
    return None if is_better_than_chance else "no better than chance"


def read_rules(path: Path, weights_sha256: str) -> Rules:
    """Read the rules that belong to a detector; raises UserError where they are not there."""
    try:
        rules = Rules.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        raise UserError(
            f"{path}: no such file, and verdicts need it; write it with `dvc repro evaluate`"
        ) from None
    except pydantic.ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(map(str, problem["loc"])) or "the whole file"
        raise UserError(
            f"{path}: not the rules of verdicts: {where}: {short(problem['msg'])}; write it again "
            "with `dvc repro evaluate`"
        ) from None
    if rules.weights_sha256 != weights_sha256:
        raise UserError(
            f"{path}: the rules of another detector; write them again with `dvc repro evaluate`"
        )
    return rules

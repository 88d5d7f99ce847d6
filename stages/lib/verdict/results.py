"""What a verdict says: of a face, an image, a person in a video, and a video."""

from typing import Literal

from stages.lib.core.schema import FrozenModel
from stages.lib.evaluation.verdict_rules import REASONS, UNSURE, Doubt

VerdictName = Literal["real", "fake", "unsure"]
RANKING: tuple[VerdictName, ...] = ("fake", "unsure", "real")  # of a face decides for the image


class ScoredPart(FrozenModel):
    """The verdict of a part of a file: a face, or a person."""

    verdict: VerdictName
    probability: float | None  # that it is fake, calibrated, 0 to 1; None: doubt withholds it
    score: float  # P(fake) as the detector says it, which the thresholds apply to
    logit: float  # the same as log(P(fake) / P(real)), with all its digits
    reasons: list[str]  # why it is unsure, keys of REASONS
    face_size: float  # in pixels; 0: none found
    distance: float | None = None  # to the training images; None: not known, or a record of before


class FaceVerdict(ScoredPart):
    """The verdict of one face, or of a whole image that was not cut."""

    views: dict[str, float]  # the scores of slightly changed views
    stability: float  # the share of those views on the same side of the middle threshold
    box: list[int] | None  # of the face in the upright image: left, top, width, height


class PersonFrame(FrozenModel):
    """A frame in which a person is seen."""

    number: int  # of the frame in the video, from 0
    seconds: float  # from the first frame
    score: float
    logit: float
    box: list[int] | None  # of the face; None: none was found


class PersonVerdict(ScoredPart):
    """The verdict of a person in a video; its logit is the mean of those of its frames.

    Its size is the median over its frames, its distance the mean.
    """

    lowest: float  # mean over the frames of the least score of slightly changed views, from logits
    highest: float  # the same of the highest one
    same_side: float  # the share of its frames on the same side of the middle threshold as the mean
    deviation: float  # standard deviation of the logits of its frames
    frames: list[PersonFrame]


class FileVerdict(FrozenModel):
    """The verdict of a file, and what it follows from.

    A file is fake where one of its parts is; else unsure where one of them is; else real, which
    means no more than that there is no sign of the manipulations that the detector knows. Its
    probability is the highest of its parts. A detector that cannot be believed gives none; scores
    stay, so that its verdict can be repeated.
    """

    sha256: str  # of the file
    format: str  # of an image, or the codec of a video
    width: int
    height: int
    doubt: Doubt | None = None  # why the detector cannot be believed; records of before have none
    verdict: VerdictName
    probability: float | None
    reasons: list[str]
    no_sign_of: str = ""  # what a verdict "real" has looked for, in words; else empty
    not_judged: int = 0  # further faces that were found, the smallest ones
    missed_below: int = 0  # pixels of a face that was not looked for; 0: all pixels were searched

    @property
    def not_searched(self) -> str:
        """Return in words which faces the verdict does not count, or nothing."""
        told = []
        if self.not_judged:
            told.append(f"of the faces found, {self.not_judged} smaller ones were not examined")
        if self.missed_below:
            told.append(f"faces below {self.missed_below} pixels were not looked for")
        return "; ".join(told)


class ImageVerdict(FileVerdict):
    """The verdict of an image, with those of its faces."""

    jpeg_quality: int | None
    faces: list[FaceVerdict]

    @property
    def parts(self) -> list[FaceVerdict]:
        """What decides the verdict."""
        return self.faces


class VideoVerdict(FileVerdict):
    """The verdict of a video, with those of the persons in it; who is seen first comes first."""

    seconds: float  # from the first frame to the last one
    num_frames: int  # in the file
    frames_wanted: int  # evenly spread, to be judged
    frames_judged: int  # of them: could be decoded and, where faces are cut, have one if any has
    thresholds_of: Literal["videos", "images"]  # which calibration they were chosen on
    persons: list[PersonVerdict]

    @property
    def parts(self) -> list[PersonVerdict]:
        """What decides the verdict."""
        return self.persons


def verdict_of_parts(
    parts: list[FaceVerdict] | list[PersonVerdict],
) -> tuple[VerdictName, float | None, list[str]]:
    """Return the verdict of a file, its probability, and the reasons why it is unsure."""
    verdict = min((part.verdict for part in parts), key=RANKING.index)
    probabilities = [part.probability for part in parts if part.probability is not None]
    given = {reason for part in parts for reason in part.reasons if verdict == UNSURE}
    return verdict, max(probabilities, default=None), [name for name in REASONS if name in given]

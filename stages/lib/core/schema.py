"""What is written as JSON and read back: the base of all such models, and one that rooms share."""

import pydantic


class FrozenModel(pydantic.BaseModel):
    """Immutable, without unknown fields, and the same when it is read back."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid")


class TrainingFakes(FrozenModel):
    """The training fakes of one manipulation method and one source; None: not known."""

    family: str | None
    source: str | None
    num_images: int


class TrainingSummary(FrozenModel):
    """What the training images were like, as far as a verdict on another image depends on it.

    The ranges leave out the lowest and the highest percent.
    """

    num_images: int
    side: tuple[int, int]  # of the shorter side in pixels
    jpeg_quality: tuple[int, int] | None  # with augmentation; None: few of them are JPEGs
    face: tuple[int, int] | None  # size of the face in pixels; None: few have one
    face_margin: float | None  # median of the shorter side, in sizes of the face
    sources: dict[str, int] = {}  # images of each source that is known
    fakes: tuple[TrainingFakes, ...] = ()

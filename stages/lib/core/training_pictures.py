"""What the training pictures of a detector were like: its config.json says so."""

from stages.lib.core.facts import Facts


class TrainingPictures(Facts):
    """What the training pictures were like, as far as a verdict on another picture depends on it.

    The ranges leave out the lowest and the highest percent.
    """

    num_images: int
    side: tuple[int, int]  # of the shorter side in pixels
    jpeg_quality: tuple[int, int] | None  # with augmentation; None: few of them are JPEGs
    face: tuple[int, int] | None  # size of the face in pixels; None: few have one
    face_margin: float | None  # median of the shorter side, in sizes of the face

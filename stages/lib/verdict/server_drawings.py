"""The images that explain a verdict on the page, as PNG in data URLs."""

from base64 import b64encode
from io import BytesIO
from typing import Any, BinaryIO

import numpy as np
from matplotlib import colormaps
from PIL import Image

from stages.lib.core.schema import FrozenModel
from stages.lib.images.decoding import middle_of
from stages.lib.report.forensics import FORENSIC_VIEWS, white_level
from stages.lib.report.sheets import SheetRow
from stages.lib.verdict.examiner import Examiner
from stages.lib.verdict.explained_faces import explained_faces
from stages.lib.verdict.explanation import not_told, verdict_in_words
from stages.lib.verdict.record import AnyRecord, VideoRecord
from stages.lib.verdict.video_explanation import show_persons

MOST_DRAWN = 4  # faces of an image, the largest ones
SIDE = 384  # pixels of a drawing, at most


class FaceDrawings(FrozenModel):
    """Data URLs of images of one face."""

    image: str
    heatmap: str  # to lay over it: red speaks for fake, blue for real
    heat: float  # the most that covering a place moves the log-odds
    views: dict[str, str]  # of FORENSIC_VIEWS


class PersonDrawing(FrozenModel):
    """The face of a person in a video, where it speaks most for fake."""

    number: int  # of the person in the record, from 1
    image: str


class FrameDrawings(FaceDrawings):
    """A frame of a person."""

    person: int  # from 1
    seconds: float
    score: float


class Explanation(FrozenModel):
    """A verdict and what explains it."""

    record: AnyRecord
    in_words: str  # what the verdict means
    not_told: list[str]  # what it does not tell
    faces: tuple[FaceDrawings, ...] = ()  # of the first faces of an image
    persons: tuple[PersonDrawing, ...] = ()  # of a video, those with the highest scores first
    frames: tuple[FrameDrawings, ...] = ()  # of a video, those that speak most for fake


def explain(examiner: Examiner, record: AnyRecord, file: BinaryIO) -> Explanation:
    """Return the drawings for an image or a video; file: open, which record is of."""
    drawings: dict[str, Any] = {}
    if isinstance(record, VideoRecord):
        persons, frames = show_persons(examiner, record, file)
        drawings["persons"] = [
            PersonDrawing(number=person.number, image=_url(person.image)) for person in persons
        ]
        drawings["frames"] = [
            FrameDrawings(
                **_draw(shown.row),
                person=shown.person,
                seconds=shown.frame.seconds,
                score=shown.frame.score,
            )
            for shown in frames
        ]
    else:
        faces = explained_faces(examiner, record, file.read(), MOST_DRAWN)
        drawings["faces"] = [FaceDrawings(**_draw(face)) for face in faces]
    return Explanation(
        record=record,
        in_words=verdict_in_words(record),
        not_told=not_told(record.doubt),
        **drawings,
    )


def _draw(face: SheetRow) -> dict[str, Any]:
    """Return the fields of FaceDrawings."""
    largest = float(np.abs(face.heat).max())
    colours = colormaps["RdBu_r"](face.heat / (largest or 1) / 2 + 0.5)
    colours[..., 3] = np.abs(face.heat) / (largest or 1)
    middle = middle_of(face.image)
    return {
        "image": _url(face.image),
        "heatmap": _url(np.round(255 * colours).astype(np.uint8)),
        "heat": largest,
        "views": {name: _url(_brightness(view(middle))) for name, view in FORENSIC_VIEWS.items()},
    }


def _brightness(view: np.ndarray) -> np.ndarray:
    """Return a forensic view, float (H, W), as colours."""
    shares = np.clip(view / white_level(view), 0, 1)
    return np.round(255 * colormaps["magma"](shares)[..., :3]).astype(np.uint8)


def _url(pixels: np.ndarray) -> str:
    """Return an image, uint8 (H, W, 3 or 4), of at most SIDE pixels as a data URL."""
    image, buffer = Image.fromarray(pixels), BytesIO()
    image.thumbnail((SIDE, SIDE))
    image.save(buffer, "PNG")
    return "data:image/png;base64," + b64encode(buffer.getvalue()).decode()

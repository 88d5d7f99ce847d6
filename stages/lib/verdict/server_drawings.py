"""The images that explain a verdict on the page, as PNG in data URLs."""

from base64 import b64encode
from io import BytesIO

import numpy as np
from matplotlib import colormaps
from PIL import Image

from stages.lib.core.schema import FrozenModel
from stages.lib.images.decoding import middle_of
from stages.lib.report.forensics import FORENSIC_VIEWS, white_level
from stages.lib.verdict.examiner import Examiner
from stages.lib.verdict.explanation import explained_faces, not_told, verdict_in_words
from stages.lib.verdict.record import Record

MOST_DRAWN = 4  # faces of an image, the largest ones
SIDE = 384  # pixels of a drawing, at most


class FaceDrawings(FrozenModel):
    """Data URLs of images of one face."""

    image: str
    heatmap: str  # to lay over it: red speaks for fake, blue for real
    heat: float  # the most that covering a place moves the log-odds
    views: dict[str, str]  # of FORENSIC_VIEWS


class Explanation(FrozenModel):
    """A verdict and what explains it."""

    record: Record
    in_words: str  # what the verdict means
    not_told: list[str]  # what it does not tell
    faces: list[FaceDrawings]  # of the first faces of the record


def explain(examiner: Examiner, record: Record, content: bytes) -> Explanation:
    """Return the drawings for an image; content: the bytes of its file, which record is of."""
    drawings = []
    for face in explained_faces(examiner, record, content, MOST_DRAWN):
        largest = float(np.abs(face.heat).max())
        colours = colormaps["RdBu_r"](face.heat / (largest or 1) / 2 + 0.5)
        colours[..., 3] = np.abs(face.heat) / (largest or 1)
        heatmap = _url(np.round(255 * colours).astype(np.uint8))
        middle = middle_of(face.image)
        views = {name: _url(_brightness(view(middle))) for name, view in FORENSIC_VIEWS.items()}
        drawings.append(
            FaceDrawings(image=_url(face.image), heatmap=heatmap, heat=largest, views=views)
        )
    return Explanation(
        record=record,
        in_words=verdict_in_words(record),
        not_told=not_told(record.doubt),
        faces=drawings,
    )


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

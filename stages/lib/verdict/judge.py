"""From the bytes of a picture to its verdict: the faces in it, their scores, and what they mean."""

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
import torch
from scipy.special import expit

from stages.lib.core.faces import Face, crop_face, find_faces
from stages.lib.core.files import sha256_of
from stages.lib.core.pictures import UnusableImage, read_picture
from stages.lib.detector.model import CONFIG_FILE, load_detector
from stages.lib.detector.preprocessing import reencode, seen_part, to_square
from stages.lib.detector.runtime import Hardware
from stages.lib.prediction.views import CHANGED_VIEWS, SCORED_VIEWS, plain_and_changed
from stages.lib.verdict.facts import Facts
from stages.lib.verdict.networks import network_of
from stages.lib.verdict.rules import UNSURE, read_rules

RULES_FILE = "verdict_rules.json"
MOST_FACES = 32  # of a picture that are judged, the largest ones
NUM_VIEWS = 1 + len(CHANGED_VIEWS)
VerdictName = Literal["real", "fake", "unsure"]
RANKING: tuple[VerdictName, ...] = ("fake", "unsure", "real")  # of a face decides for the picture


class FaceVerdict(Facts):
    """The verdict of one face, or of a whole picture that was not cropped."""

    verdict: VerdictName
    probability: float  # that it is fake, calibrated, 0 to 1
    score: float  # P(fake) as the detector says it, which the thresholds apply to
    logit: float  # the same as log(P(fake) / P(real)), with all its digits
    views: dict[str, float]  # the scores of slightly changed views
    stability: float  # the share of those views on the same side of the middle threshold
    reasons: list[str]  # why it is unsure, keys of REASONS
    box: list[int] | None  # of the face in the upright picture: left, top, width, height
    face: float  # size of the face in pixels; 0: none found


class PictureVerdict(Facts):
    """The verdict of a picture, and everything that it follows from.

    A picture is fake where one of its faces is; else unsure where one of them is; else real. Its
    probability is the highest of its faces.
    """

    sha256: str  # of the file
    format: str
    width: int
    height: int
    jpeg_quality: int | None
    verdict: VerdictName
    probability: float
    reasons: list[str]
    faces: list[FaceVerdict]


@dataclass
class Part:
    """What the detector sees of a picture: a face with its surroundings, or all of it."""

    pixels: torch.Tensor  # uint8 (3, h, w)
    face: Face | None
    is_crop: bool


@dataclass
class Opened:
    """A decoded picture and its parts."""

    sha256: str
    format: str
    size: tuple[int, int]  # width and height
    jpeg_quality: int | None
    parts: list[Part]


def rules_file(folder: Path) -> Path:
    """Return where the rules of the detector in a folder are: in it, or beside it."""
    inside = folder / RULES_FILE
    return inside if inside.is_file() else folder.parent / RULES_FILE


class Judge:
    """Judges pictures with a detector and its rules."""

    def __init__(
        self, folder: Path, hardware: Hardware, crop: bool, max_pixels: int, batch_size: int = 32
    ) -> None:
        """Load the model in a folder, and the rules in it or beside it; raises UserError.

        crop: judge each face in a picture by itself, cut out as the training pictures were.
        """
        self.detector, self.config = load_detector(folder)
        self.detector = self.detector.to(hardware.device).to(memory_format=torch.channels_last)
        self.network, self.runtime = network_of(folder, self.detector, hardware)
        rules = rules_file(folder)
        self.rules = read_rules(rules, self.config.weights_sha256)
        self.digests = {
            "weights": self.config.weights_sha256,
            "config": sha256_of(folder / CONFIG_FILE),
            "rules": sha256_of(rules),
        }
        self.hardware, self.crop = hardware, crop
        self.max_pixels, self.batch_size = max_pixels, batch_size
        self.pool = ThreadPoolExecutor(torch.get_num_threads())  # decodes and finds faces

    @property
    def face_share(self) -> float | None:
        """Side of the square that is cut out, in sizes of the face; None: the picture is not cut.

        Where the detector was trained on whole pictures, it is the median of those.
        """
        if not self.crop:
            return None
        known = self.rules.trained_on.face_margin
        return self.config.preprocessing.face_crop or known

    def judge(self, contents: Sequence[bytes]) -> list[PictureVerdict | UnusableImage]:
        """Return the verdict of each image file, or why it cannot be judged; in their order."""
        opened = list(self.pool.map(self._opened_or_not, contents))
        verdicts = iter(self.judge_opened([one for one in opened if isinstance(one, Opened)]))
        return [next(verdicts) if isinstance(one, Opened) else one for one in opened]

    def judge_opened(self, opened: Sequence[Opened]) -> list[PictureVerdict]:
        """Return the verdict of each opened picture; all their faces are scored together."""
        preprocessing = self.config.preprocessing
        parts = [part.pixels for one in opened for part in one.parts]
        inputs = list(self.pool.map(lambda part: plain_and_changed(part, preprocessing), parts))
        logits = iter(self._logits(inputs))
        return [self._verdict(one, [next(logits) for _ in one.parts]) for one in opened]

    def _opened_or_not(self, content: bytes) -> Opened | UnusableImage:
        try:
            return self.open(content)
        except UnusableImage as error:
            return error

    def open(self, content: bytes) -> Opened:
        """Decode an image file and find what to judge in it; raises UnusableImage."""
        preprocessing = self.config.preprocessing
        at_least = preprocessing.image_size if preprocessing.scaled_decoding else None
        picture = read_picture(content, self.max_pixels, None if self.face_share else at_least)
        parts = self.parts_of(torch.from_numpy(picture.pixels).permute(2, 0, 1))
        digest = hashlib.sha256(content).hexdigest()
        return Opened(digest, picture.format, picture.size, picture.jpeg_quality, parts)

    def parts_of(self, pixels: torch.Tensor) -> list[Part]:
        """Return what to judge in a picture, uint8 (3, H, W): its faces, the largest first."""
        faces = find_faces(pixels)[:MOST_FACES]
        if self.face_share and faces:
            return [Part(crop_face(pixels, face, self.face_share), face, True) for face in faces]
        part = seen_part(pixels, self.config.preprocessing)
        return [Part(part, faces[0] if faces else None, False)]

    def input_of(self, part: Part) -> torch.Tensor:
        """Return the input of the detector, uint8 (3, S, S)."""
        preprocessing = self.config.preprocessing
        return reencode(to_square(part.pixels, preprocessing), preprocessing, None)

    def _logits(self, inputs: list[torch.Tensor]) -> np.ndarray:
        """Return float64 (N, V): the logits of all views; inputs: N times uint8 (V, 3, S, S)."""
        if not inputs:
            return np.empty((0, NUM_VIEWS))
        found = []
        for batch in torch.cat(inputs).split(self.batch_size):
            views = [self.network(SCORED_VIEWS[view](batch)) for view in self.rules.views]
            found.append(torch.stack(views).mean(dim=0).double())
        return torch.cat(found).view(len(inputs), NUM_VIEWS).numpy()

    def _verdict(self, opened: Opened, logits: list[np.ndarray]) -> PictureVerdict:
        """Return the verdict of a picture from the logits of the views of its parts."""
        width, height = opened.size
        table = pd.DataFrame(
            {
                "logit": [one[0] for one in logits],
                "low": [one[1:].min() for one in logits],
                "high": [one[1:].max() for one in logits],
                "face": [part.face.size if part.face else 0.0 for part in opened.parts],
                "width": [part.pixels.shape[2] if part.is_crop else width for part in opened.parts],
                "height": [
                    part.pixels.shape[1] if part.is_crop else height for part in opened.parts
                ],
                "jpeg_quality": float("nan")
                if opened.jpeg_quality is None
                else opened.jpeg_quality,
            }
        )
        reasons, verdicts = self.rules.reasons(table), self.rules.verdicts(table)
        faces = [
            self._face_verdict(part, logits[row], verdicts[row], reasons.loc[row])
            for row, part in enumerate(opened.parts)
        ]
        found = {face.verdict for face in faces}
        verdict = next(name for name in RANKING if name in found)
        return PictureVerdict(
            sha256=opened.sha256, format=opened.format, width=width, height=height,
            jpeg_quality=opened.jpeg_quality, verdict=verdict,
            probability=max(face.probability for face in faces),
            reasons=[name for name in reasons if verdict == UNSURE and reasons[name].any()],
            faces=faces,
        )  # fmt: skip

    def _face_verdict(
        self, part: Part, logits: np.ndarray, verdict: str, reasons: pd.Series
    ) -> FaceVerdict:
        limits, face = self.rules.thresholds, part.face
        scores = expit(logits)
        same_side = (scores[1:] >= limits.middle) == (scores[0] >= limits.middle)
        box = (
            [round(side) for side in (face.left, face.top, face.width, face.height)]
            if face
            else None
        )
        return FaceVerdict(
            verdict=verdict,  # pyrefly: ignore[bad-argument-type]
            probability=float(expit(logits[0] / limits.temperature)),
            score=float(scores[0]),
            logit=float(logits[0]),
            views=dict(zip(CHANGED_VIEWS, scores[1:].tolist(), strict=True)),
            stability=float(same_side.mean()),
            reasons=[name for name, given in reasons.items() if given],
            box=box,
            face=face.size if face else 0.0,
        )  # fmt: skip

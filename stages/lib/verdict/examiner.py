"""From the bytes of an image to its verdict: the faces in it, their scores, and what they mean."""

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
import torch
from scipy.special import expit

from stages.lib import paths
from stages.lib.core.errors import UserError, short
from stages.lib.core.files import sha256_of
from stages.lib.core.schema import FrozenModel
from stages.lib.detector.hardware import Hardware
from stages.lib.detector.model import CONFIG_FILE, load_detector
from stages.lib.detector.views import CHANGED_VIEWS, SCORED_VIEWS, plain_and_changed
from stages.lib.evaluation.verdict_rules import UNSURE, Doubt, read_rules
from stages.lib.images.decoding import UnusableImage, decode_image
from stages.lib.images.faces import Face, crop_face, find_faces, smallest_found
from stages.lib.verdict.networks import choose_network

RULES_FILE = paths.VERDICT_RULES.name
MOST_FACES = 32  # of an image that are judged, the largest ones
NUM_VIEWS = 1 + len(CHANGED_VIEWS)
VerdictName = Literal["real", "fake", "unsure"]
RANKING: tuple[VerdictName, ...] = ("fake", "unsure", "real")  # of a face decides for the image


class FaceVerdict(FrozenModel):
    """The verdict of one face, or of a whole image that was not cut."""

    verdict: VerdictName
    probability: float | None  # that it is fake, calibrated, 0 to 1; None: doubt withholds it
    score: float  # P(fake) as the detector says it, which the thresholds apply to
    logit: float  # the same as log(P(fake) / P(real)), with all its digits
    views: dict[str, float]  # the scores of slightly changed views
    stability: float  # the share of those views on the same side of the middle threshold
    reasons: list[str]  # why it is unsure, keys of REASONS
    box: list[int] | None  # of the face in the upright image: left, top, width, height
    face_size: float  # in pixels; 0: none found


class ImageVerdict(FrozenModel):
    """The verdict of an image, and everything that it follows from.

    An image is fake where one of its faces is; else unsure where one of them is; else real. Its
    probability is the highest of its faces. A detector that cannot be believed gives none; scores
    stay, so that its verdict can be repeated.
    """

    sha256: str  # of the file
    format: str
    width: int
    height: int
    jpeg_quality: int | None
    doubt: Doubt | None = None  # why the detector cannot be believed; records of before have none
    verdict: VerdictName
    probability: float | None
    reasons: list[str]
    faces: list[FaceVerdict]
    not_judged: int = 0  # further faces that were found, the smallest ones
    missed_below: int = 0  # pixels of a face that was not looked for; 0: all pixels were searched

    @property
    def not_searched(self) -> str:
        """Return in words which faces the verdict does not count, or nothing."""
        told = []
        if self.not_judged:
            told.append(f"of the faces found, {self.not_judged} smaller ones were not judged")
        if self.missed_below:
            told.append(f"faces below {self.missed_below} pixels were not looked for")
        return "; ".join(told)


@dataclass(frozen=True)
class Opened:
    """A decoded image, and the parts of it that are judged."""

    sha256: str
    format: str
    size: tuple[int, int]  # width and height
    jpeg_quality: int | None
    faces: list[Face | None]  # of each part, in pixels of the file; None: no face found
    parts: list[torch.Tensor]  # what the detector sees, uint8 (3, h, w) each
    not_judged: int = 0  # see ImageVerdict
    missed_below: int = 0


def rules_file(folder: Path) -> Path:
    """Return where the rules of the detector in a folder are: in it, or beside it."""
    inside = folder / RULES_FILE
    return inside if inside.is_file() else folder.parent / RULES_FILE


class Examiner:
    """Judges images with a detector and its rules."""

    def __init__(
        self, folder: Path, hardware: Hardware, crop: bool, max_pixels: int, batch_size: int = 32
    ) -> None:
        """Load the model in a folder, and the rules in it or beside it; raises UserError.

        crop: judge each face in an image by itself, cut out as the training images were.
        max_pixels: of the largest image.
        """
        self.detector, self.config = load_detector(folder)
        self.detector = self.detector.to(hardware.device).to(memory_format=torch.channels_last)
        self.network = choose_network(folder, self.detector, self.config, hardware)
        rules = rules_file(folder)
        self.rules = read_rules(rules, self.config.weights_sha256)
        self.digests = {
            "weights": self.config.weights_sha256,
            "config": sha256_of(folder / CONFIG_FILE),
            "rules": sha256_of(rules),
            "network": self.network.sha256,
        }
        self.hardware, self.crop = hardware, crop
        self.max_pixels, self.batch_size = max_pixels, batch_size
        self.pool = ThreadPoolExecutor(torch.get_num_threads())  # decodes and finds faces

    @property
    def face_share(self) -> float | None:
        """Side of the square that is cut out, in sizes of the face; None: the image is not cut.

        Where the detector was trained on whole images, it is the median of those.
        """
        if not self.crop:
            return None
        return self.config.preprocessing.face_crop or self.rules.trained_on.face_margin

    @property
    def arithmetic(self) -> str:
        """In what the scores are computed; nothing pins the kernels of ONNX Runtime."""
        return self.hardware.arithmetic if self.network.runtime == "torch" else "native"

    def examine(self, contents: Sequence[bytes]) -> list[ImageVerdict | UnusableImage]:
        """Return the verdict of each image file, or why it cannot be judged; in their order."""
        ready = list(self.pool.map(self._ready, contents))
        good = [one for one in ready if not isinstance(one, UnusableImage)]
        verdicts = iter(self._verdicts(good))
        return [one if isinstance(one, UnusableImage) else next(verdicts) for one in ready]

    def examine_opened(self, opened: Sequence[Opened]) -> list[ImageVerdict]:
        """Return the verdict of each opened image."""
        return self._verdicts([(one, self._inputs(one)) for one in opened])

    def open(self, content: bytes) -> Opened:
        """Decode an image file and find what to judge in it; raises UnusableImage."""
        preprocessing = self.config.preprocessing
        at_least = preprocessing.image_size if preprocessing.scaled_decoding else None
        image = decode_image(content, self.max_pixels, None if self.face_share else at_least)
        return self.open_pixels(
            torch.from_numpy(image.pixels).permute(2, 0, 1),
            Opened(hashlib.sha256(content).hexdigest(), image.format, image.size,
                   image.jpeg_quality, [], []),
        )  # fmt: skip

    def open_pixels(self, pixels: torch.Tensor, opened: Opened) -> Opened:
        """Return what is known of an image with its parts; pixels: uint8 (3, H, W)."""
        is_cut = bool(self.face_share)
        faces = find_faces(pixels, small=is_cut)
        share = self.face_share or self.config.preprocessing.face_crop
        judged = faces[: MOST_FACES if is_cut else 1]
        parts = [crop_face(pixels, face, share).clone() for face in judged if share] or [pixels]
        scale = opened.size[0] / pixels.shape[2]  # not 1 where a JPEG was decoded smaller
        found = replace(
            opened, faces=[face.scaled(scale) for face in judged] or [None], parts=parts
        )
        if not is_cut:
            return found
        missed = smallest_found(*opened.size)
        return replace(found, not_judged=len(faces) - len(judged), missed_below=missed)

    def _ready(self, content: bytes) -> tuple[Opened, list[torch.Tensor]] | UnusableImage:
        """Return an opened image without its pixels, and its inputs; or what is wrong with it."""
        try:
            opened = self.open(content)
            return replace(opened, parts=[]), self._inputs(opened)
        except UnusableImage as error:
            return error
        except MemoryError:
            return UnusableImage("too large for the memory of this machine")

    def _inputs(self, opened: Opened) -> list[torch.Tensor]:
        """Return the inputs of each part, uint8 (V, 3, S, S); raises UnusableImage."""
        try:
            return [plain_and_changed(part, self.config.preprocessing) for part in opened.parts]
        except (ValueError, RuntimeError, OSError) as error:  # of an encoder of the changed views
            raise UnusableImage(f"cannot be compressed again: {short(error, 100)}") from error

    def _verdicts(self, ready: Sequence[tuple[Opened, list[torch.Tensor]]]) -> list[ImageVerdict]:
        """Return the verdicts of images; all their faces are scored together."""
        logits = iter(self._logits([one for _, inputs in ready for one in inputs]))
        return [self._verdict(opened, [next(logits) for _ in inputs]) for opened, inputs in ready]

    def _logits(self, inputs: list[torch.Tensor]) -> np.ndarray:
        """Return float64 (N, V): the logits of all views; inputs: N times uint8 (V, 3, S, S)."""
        if not inputs:
            return np.empty((0, NUM_VIEWS))
        batches = torch.cat(inputs).split(self.batch_size)
        logits = torch.cat([self.score(batch) for batch in batches]).view(len(inputs), NUM_VIEWS)
        if not logits.isfinite().all():
            raise UserError(
                f"weights {self.config.weights_sha256[:12]} give scores that are no numbers; take "
                "another model, or train again with a lower train.lr"
            )
        return logits.numpy()

    def score(self, images: torch.Tensor) -> torch.Tensor:
        """Return the mean logits of the scored views: uint8 (N, 3, S, S) to float64 (N,)."""
        views = [self.network.run(SCORED_VIEWS[view](images)) for view in self.rules.views]
        return torch.stack(views).mean(dim=0).double()

    def _verdict(self, opened: Opened, logits: list[np.ndarray]) -> ImageVerdict:
        """Return the verdict of an image from the logits of the views of its parts."""
        width, height = opened.size
        table = pd.DataFrame(
            {
                "logit": [one[0] for one in logits],
                "low": [one[1:].min() for one in logits],
                "high": [one[1:].max() for one in logits],
                "face": [face.size if face else 0.0 for face in opened.faces],
                "width": width,
                "height": height,
                "jpeg_quality": np.nan if opened.jpeg_quality is None else opened.jpeg_quality,
            }
        )
        verdicts, reasons = self.rules.apply(table)
        faces = [
            self._face_verdict(face, logits[row], verdicts[row], reasons.loc[row])
            for row, face in enumerate(opened.faces)
        ]
        found = {face.verdict for face in faces}
        verdict = next(name for name in RANKING if name in found)
        return ImageVerdict(
            sha256=opened.sha256, format=opened.format, width=width, height=height,
            jpeg_quality=opened.jpeg_quality, doubt=self.rules.doubt, verdict=verdict,
            probability=max((face.probability for face in faces if face.probability is not None),
                            default=None),
            reasons=[name for name in reasons if verdict == UNSURE and reasons[name].any()],
            faces=faces, not_judged=opened.not_judged, missed_below=opened.missed_below,
        )  # fmt: skip

    def _face_verdict(
        self, face: Face | None, logits: np.ndarray, verdict: VerdictName, reasons: pd.Series
    ) -> FaceVerdict:
        limits, scores = self.rules.thresholds, expit(logits)
        same_side = (scores[1:] >= limits.middle) == (scores[0] >= limits.middle)
        return FaceVerdict(
            verdict=verdict,
            probability=None if self.rules.doubt else float(expit(logits[0] / limits.temperature)),
            score=float(scores[0]),
            logit=float(logits[0]),
            views=dict(zip(CHANGED_VIEWS, scores[1:].tolist(), strict=True)),
            stability=float(same_side.mean()),
            reasons=[str(name) for name, given in reasons.items() if given],
            box=face.box if face else None,
            face_size=face.size if face else 0.0,
        )

"""From the bytes of an image to its verdict: the faces in it, their scores, and what they mean."""

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy.special import expit

from stages.lib import paths
from stages.lib.core.errors import UserError, short
from stages.lib.core.files import sha256_of
from stages.lib.detector.hardware import Hardware
from stages.lib.detector.inference import CHANGED_VIEWS, Inference, inputs_of_views, score_table
from stages.lib.detector.model import CONFIG_FILE
from stages.lib.detector.preprocessing import Preprocessing, crops_of, decode
from stages.lib.evaluation.verdict_rules import known_manipulations, read_rules
from stages.lib.images.decoding import DecodedImage, UnusableImage
from stages.lib.images.faces import Face, find_faces, smallest_found
from stages.lib.verdict.networks import choose_network
from stages.lib.verdict.results import (
    FaceVerdict,
    ImageVerdict,
    PersonVerdict,
    VerdictName,
    verdict_of_parts,
)

RULES_FILE = paths.VERDICT_RULES.name
MOST_FACES = 32  # of an image that are examined, the largest ones


@dataclass(frozen=True)
class PreparedImage:
    """What is known of an image before it is scored, without its pixels."""

    sha256: str  # of the file
    format: str
    size: tuple[int, int]  # width and height
    jpeg_quality: int | None
    faces: list[Face | None]  # that are scored, in pixels of the file; None: no face found
    inputs: torch.Tensor  # of each of them, uint8 (F, 1 + V, 3, S, S)
    not_judged: int  # see ImageVerdict
    missed_below: int


def rules_file(folder: Path) -> Path:
    """Return where the rules of the detector in a folder are: in it, or beside it."""
    inside = folder / RULES_FILE
    return inside if inside.is_file() else folder.parent / RULES_FILE


class Examiner:
    """Examines images with a detector and its rules."""

    def __init__(self, folder: Path, hardware: Hardware, crop: bool, max_pixels: int) -> None:
        """Load the model in a folder, and the rules in it or beside it; raises UserError.

        crop: examine each face in an image by itself, cut out as the training images were.
        max_pixels: of the largest image.
        """
        inference = Inference.load(folder, hardware)
        self.config = inference.config
        self.network = choose_network(folder, inference)
        rules = rules_file(folder)
        self.rules = read_rules(rules, self.config.weights_sha256)
        self.inference = replace(inference, network=self.network.run, views=self.rules.views)
        self.digests = {
            "weights": self.config.weights_sha256,
            "config": sha256_of(folder / CONFIG_FILE),
            "rules": sha256_of(rules),
            "network": self.network.sha256,
        }
        self.crop, self.max_pixels = crop, max_pixels
        self.pool = ThreadPoolExecutor(torch.get_num_threads())  # decodes and finds faces

    @property
    def preprocessing(self) -> Preprocessing:
        """How images become inputs here.

        Where the detector was trained on whole images of faces, each face is cut out with the
        median margin of those.
        """
        own, margin = self.config.preprocessing, self.rules.trained_on.face_margin
        if own.face_crop or not self.crop or not margin:
            return own
        return own.model_copy(update={"face_crop": margin, "scaled_decoding": False})

    @property
    def face_share(self) -> float | None:
        """Side of the square that is cut out, in sizes of the face; None: the image is not cut."""
        return self.preprocessing.face_crop if self.crop else None

    @property
    def arithmetic(self) -> str:
        """In what the scores are computed; nothing pins the kernels of ONNX Runtime."""
        is_torch = self.network.runtime == "torch"
        return self.inference.hardware.arithmetic if is_torch else "native"

    def examine(self, contents: Sequence[bytes]) -> list[ImageVerdict | UnusableImage]:
        """Return the verdict of each image file, or why it has none; in their order."""
        prepared = list(self.pool.map(self._prepare_file, contents))
        usable = [image for image in prepared if not isinstance(image, UnusableImage)]
        verdicts = iter(self.verdicts(usable))
        return [image if isinstance(image, UnusableImage) else next(verdicts) for image in prepared]

    def decode(self, content: bytes) -> DecodedImage:
        """Decode an image file; raises UnusableImage."""
        return decode(content, self.preprocessing, self.max_pixels)

    def crops(self, image: DecodedImage) -> tuple[list[Face], list[torch.Tensor]]:
        """Return the faces in an image, and what the detector sees of each, uint8 (3, h, w).

        Without a face that is one crop, the whole image.
        """
        faces, _ = self._find_faces(image.tensor)
        return faces, crops_of(image.tensor, faces, self.preprocessing)

    def _find_faces(self, pixels: torch.Tensor) -> tuple[list[Face], int]:
        """Return the faces in an image that are examined, and how many more there are."""
        if not self.face_share:
            return find_faces(pixels, small=False)[:1], 0
        faces = find_faces(pixels, small=True)
        return faces[:MOST_FACES], max(0, len(faces) - MOST_FACES)

    def _prepare_file(self, content: bytes) -> PreparedImage | UnusableImage:
        """Return an image file as `prepare` does, or what is wrong with it."""
        try:
            return self.prepare(self.decode(content), hashlib.sha256(content).hexdigest())
        except UnusableImage as error:
            return error
        except MemoryError:
            return UnusableImage("too large for the memory of this machine")

    def prepare(self, image: DecodedImage, sha256: str = "") -> PreparedImage:
        """Find the faces in an image and make their inputs; raises UnusableImage."""
        pixels = image.tensor
        faces, not_judged = self._find_faces(pixels)
        crops = crops_of(pixels, faces, self.preprocessing)
        try:
            inputs = [inputs_of_views(crop, self.preprocessing) for crop in crops]
        except (ValueError, RuntimeError, OSError) as error:  # of an encoder of the changed views
            raise UnusableImage(f"cannot be compressed again: {short(error, 100)}") from error
        scale = image.size[0] / pixels.shape[2]  # not 1 where a JPEG was decoded smaller
        return PreparedImage(
            sha256=sha256,
            format=image.format,
            size=image.size,
            jpeg_quality=image.jpeg_quality,
            faces=[face.scaled(scale) for face in faces] or [None],
            inputs=torch.stack(inputs),
            not_judged=not_judged,
            missed_below=smallest_found(*image.size) if self.face_share else 0,
        )

    def verdicts(self, images: Sequence[PreparedImage]) -> list[ImageVerdict]:
        """Return the verdicts of images; all their faces are scored together."""
        scored = self.score(images)
        return [self._verdict(image, *scores) for image, scores in zip(images, scored, strict=True)]

    def score(self, images: Sequence[PreparedImage]) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """Return the logits of the faces of each image, and their distances to the training images.

        float64 (F, 1 + V) and float64 (F,).
        """
        if not images:
            return []
        inputs = torch.cat([image.inputs for image in images])
        logits, distances = self.inference.logits(inputs), self.inference.distances(inputs[:, 0])
        if not logits.isfinite().all():
            raise UserError(
                f"weights {self.config.weights_sha256[:12]} give scores that are not numbers; take "
                "another model, or train again with a lower train.lr"
            )
        num_faces = [len(image.faces) for image in images]
        return list(zip(logits.split(num_faces), distances.split(num_faces), strict=True))

    def _verdict(
        self, image: PreparedImage, logits: torch.Tensor, distances: torch.Tensor
    ) -> ImageVerdict:
        """Return the verdict of an image.

        logits, float64 (F, 1 + V), and distances, float64 (F,): of its faces.
        """
        width, height = image.size
        table = score_table(logits.numpy(), distances.numpy()).assign(
            face=[face.size if face else 0.0 for face in image.faces],
            width=width,
            height=height,
            jpeg_quality=np.nan if image.jpeg_quality is None else image.jpeg_quality,
        )
        verdicts, reasons = self.rules.apply(table)
        faces = [
            self._face_verdict(
                face, logits[row].numpy(), float(distances[row]), verdicts[row], reasons.loc[row]
            )
            for row, face in enumerate(image.faces)
        ]
        return ImageVerdict(
            sha256=image.sha256,
            format=image.format,
            width=width,
            height=height,
            jpeg_quality=image.jpeg_quality,
            faces=faces,
            **self.decision(faces),
            not_judged=image.not_judged,
            missed_below=image.missed_below,
        )

    def decision(self, parts: list[FaceVerdict] | list[PersonVerdict]) -> dict[str, Any]:
        """Return the fields of a FileVerdict that follow from its parts."""
        verdict, probability, reasons = verdict_of_parts(parts)
        is_real = verdict == "real"
        return {
            "doubt": self.rules.doubt,
            "verdict": verdict,
            "probability": probability,
            "reasons": reasons,
            "no_sign_of": known_manipulations(self.rules.trained_on) if is_real else "",
        }

    def _face_verdict(
        self,
        face: Face | None,
        logits: np.ndarray,
        distance: float,
        verdict: VerdictName,
        reasons: pd.Series,
    ) -> FaceVerdict:
        """Return the verdict of a face.

        logits: of all its inputs, float64 (1 + V,). distance: to the training images, or NaN.
        """
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
            distance=None if np.isnan(distance) else distance,
        )

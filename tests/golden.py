"""Golden scores: generated images, and what each step on the way to a verdict makes of them.

Run: python -m tests.golden      writes tests/golden.json; look at the difference before you commit

Nothing is trained: the weights are drawn by NumPy. So where a figure changes, a library or the code
has changed, and not a model.
"""

import json
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from PIL import Image

from stages.lib.core.files import write_json, write_text
from stages.lib.core.schema import TrainingSummary
from stages.lib.detector.hardware import set_up_hardware
from stages.lib.detector.model import DetectorConfig, create_model, save_detector
from stages.lib.detector.preprocessing import Preprocessing
from stages.lib.drawing.portrait import draw_person, portrait
from stages.lib.evaluation.verdict_rules import Rules, Thresholds
from stages.lib.images.decoding import decode_image
from stages.lib.verdict.examiner import RULES_FILE, Examiner
from stages.lib.verdict.results import ImageVerdict

FILE = Path(__file__).with_suffix(".json")
FORMS: dict[str, dict[str, Any]] = {
    "jpeg": {"format": "JPEG", "quality": 85},
    "progressive jpeg": {"format": "JPEG", "quality": 60, "progressive": True},
    "png": {"format": "PNG"},
    "webp": {"format": "WEBP", "quality": 80},
}
PLAIN = Preprocessing(
    image_size=64, interpolation="bilinear", mean=[0.48, 0.45, 0.4], std=[0.23, 0.22, 0.22]
)
PREPROCESSINGS = {
    "plain": PLAIN,
    "faces": PLAIN.model_copy(
        update={"interpolation": "bicubic", "face_crop": 1.2, "reencode": [70, 90]}
    ),
    "scaled": PLAIN.model_copy(update={"scaled_decoding": True}),
}


def main() -> None:
    """Write the file."""
    write_json(FILE, compute())


def compute() -> dict[str, Any]:
    """Return, for each way of preprocessing and each image, the scores; for each image, facts."""
    images = {f"{form}, person {i}": draw(i, form) for i in range(3) for form in FORMS}
    facts = {}
    for name, content in images.items():
        image = decode_image(content)
        means = image.pixels.mean(axis=(0, 1))
        facts[name] = {"mean": means.round(3).tolist(), "jpeg_quality": image.jpeg_quality}
    scores = {}
    for name, preprocessing in PREPROCESSINGS.items():
        with TemporaryDirectory() as folder:
            examiner = untrained_examiner(Path(folder), preprocessing)
            verdicts = examiner.examine(list(images.values()))
        scores[name] = dict(zip(images, map(figures, verdicts), strict=True))
    return {"facts": facts, "scores": scores}


def draw(number: int, form: str) -> bytes:
    """Return a drawn person of 200 pixels as an image file."""
    person = draw_person(np.random.default_rng([7, number]))
    pixels = portrait(person, 200).round().clip(0, 255).astype(np.uint8)
    buffer = BytesIO()
    Image.fromarray(pixels).save(buffer, **FORMS[form])
    return buffer.getvalue()


def untrained_examiner(folder: Path, preprocessing: Preprocessing) -> Examiner:
    """Return an examiner with weights from NumPy, written to and read from a folder."""
    model = create_model("test_resnet", {}, "random")
    random = np.random.default_rng(0)
    state = {}
    for name, tensor in model.state_dict().items():
        inputs = max(1, tensor.numel() // max(1, len(tensor))) if tensor.ndim else 1
        drawn = random.normal(0, 1 / np.sqrt(inputs), tuple(tensor.shape))
        is_scale = name.endswith(("running_var", "bn1.weight", "bn2.weight", "bn3.weight"))
        drawn = np.abs(drawn) + 0.5 if is_scale else drawn
        drawn = drawn * 0 if name.endswith(("bias", "running_mean")) else drawn
        drawn = drawn * 20 if name.startswith("fc.") else drawn  # far apart
        state[name] = torch.as_tensor(drawn).to(tensor.dtype)
    config = DetectorConfig(
        model="test_resnet",
        model_args={},
        preprocessing=preprocessing,
        num_parameters=1,
        initial_weights="random",
        trained_in="portable fp32",
        best_epoch=1,
    )
    rules = drawn_rules(save_detector(folder, state, config))
    write_text(folder / RULES_FILE, rules.model_dump_json())
    crop = not preprocessing.scaled_decoding  # of which images that are cut out make no use
    return Examiner(folder, set_up_hardware("cpu", 2), crop, max_pixels=10**6)


def drawn_rules(weights_sha256: str) -> Rules:
    """Return rules that nothing was measured for, of the detector with these weights."""
    return Rules(
        weights_sha256=weights_sha256,
        views=["plain", "mirrored"],
        stability=True,
        farthest=None,
        thresholds=Thresholds(
            false_alarms=0.02,
            misses=0.05,
            fake_from=0.6,
            real_below=0.4,
            middle=0.5,
            temperature=1.5,
            false_alarms_high=0.1,
            misses_high=0.12,
            num_real=50,
            num_fake=50,
        ),
        trained_on=TrainingSummary(
            num_images=1, side=(50, 300), jpeg_quality=(50, 95), face=(50, 200), face_margin=1.5
        ),
        doubt=None,
    )


def figures(verdict: Any) -> list[dict[str, Any]]:
    """Return what is kept of the verdict of an image."""
    assert isinstance(verdict, ImageVerdict)
    return [
        {"box": face.box, "logit": round(face.logit, 5), "views": list(face.views.values())}
        for face in verdict.faces
    ]


def read() -> dict[str, Any]:
    """Return what was written."""
    return json.loads(FILE.read_text())


if __name__ == "__main__":
    main()

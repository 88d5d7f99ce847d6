"""Watch memory and open files through 2,000 steps, 20 epochs and 10,000 predictions.

Run: python -m tests.benchmarks.steady                            (from the repository's root)

The training has everything switched on that keeps something: workers, degradations, pairs, mixup,
a moving average, cropped faces. The predictions go through the served model, ten images at a time.
After each epoch and each 500 predictions the memory (MB, of the process and its workers, pages that
they share counted once) and the number of open files are printed. Both must stay where they were
after the first quarter.
"""

import os
import tempfile
from pathlib import Path

import pandas as pd
import psutil
from mlflow.pyfunc import PythonModelContext

from stages.lib.core.files import write_text
from stages.lib.core.params import load_params
from stages.lib.data.layouts.competition import competition_sets
from stages.lib.detector.model import save_detector
from stages.lib.publishing.served_model import ServedDetector
from stages.lib.training.params import TrainParams
from stages.lib.training.validation import validate, validation_loader
from stages.lib.verdict.examiner import RULES_FILE
from tests.benchmarks.ablation import pairs
from tests.benchmarks.training import packed_loop
from tests.conftest import ROOT, draw_dataset, set_params
from tests.golden import drawn_rules

EPOCHS, STEPS, BATCH_SIZE = 20, 100, 4
PREDICTIONS, EACH, AT_A_TIME = 10_000, 500, 10
CHANGES = pairs(0.5, 0.5) | {
    "train.model": "test_resnet",
    "train.image_size": 32,
    "train.face_crop": 1.1,
    "train.epochs": EPOCHS,
    "train.batch_size": BATCH_SIZE,
    "train.mixup": 0.2,
    "train.ema_decay": 0.9,
    "train.num_workers": 2,
    "train.reencode": [60, 95],
    "train.device": "cpu",
    "train.arithmetic": "portable",
    **{f"train.augmentation.{name}.probability": 0.3 for name in ("jpeg", "webp", "blur", "noise")},
}


def main() -> None:
    """Print the table of the training and the one of the predictions."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        root = draw_dataset(folder / "drawn", {"train": STEPS * BATCH_SIZE, "val": 40}, size=64)
        (folder / "params.yaml").write_text((ROOT / "params.yaml").read_text())
        set_params(folder, CHANGES)
        params = load_params("train", TrainParams, folder / "params.yaml")
        print("training", train(params, root, folder).to_markdown(), sep="\n\n", flush=True)
        image = next((root / "phase1/valset").iterdir()).read_bytes()
        print("predictions", predict(folder, image).to_markdown(), sep="\n\n")


def train(params: TrainParams, root: Path, folder: Path) -> pd.DataFrame:
    """Train, write the detector into folder; return what was used after each epoch."""
    loop, val, config = packed_loop(params, competition_sets(root), folder)
    loader = validation_loader(val, params, loop.hardware)
    rows = []
    for epoch in range(params.epochs):
        loop.train_epoch(epoch)
        validate(loop.evaluated_detector, loader, loop.hardware)
        rows.append({"steps": (epoch + 1) * loop.steps_per_epoch} | used())
    digest = save_detector(folder, loop.detector.model.state_dict(), config)
    write_text(folder / RULES_FILE, drawn_rules(digest).model_dump_json())
    return pd.DataFrame(rows)


def predict(folder: Path, image: bytes) -> pd.DataFrame:
    """Score an image again and again; return what was used."""
    served = ServedDetector()
    context = PythonModelContext({"detector": str(folder)}, {"max_megapixels": 100.0})
    served.load_context(context)
    table = pd.DataFrame({"image": [image] * AT_A_TIME})
    rows = []
    for number in range(AT_A_TIME, PREDICTIONS + 1, AT_A_TIME):
        served.predict(context, table)
        if number % EACH == 0:
            rows.append({"predictions": number} | used())
    return pd.DataFrame(rows)


def used() -> dict[str, float]:
    """Return memory in MB and open files of this process and all below it."""
    own = psutil.Process(os.getpid())
    family = [own, *own.children(recursive=True)]
    memory = sum(process.memory_full_info().pss for process in family)
    return {
        "MB": round(memory / 1e6),
        "files": sum(process.num_fds() for process in family),
        "processes": len(family),
    }


if __name__ == "__main__":
    main()

"""Score images with the trained detector: P(fake) for every image of val, calibration and test.

params.yaml: predict; data/model, data/labels, data/packed
  ->  data/scores/{val,calibration,test}.csv
Run: python -m stages.predict

A score file has one row per row of its label file, in the same order: img_name, logit
(log(P(fake) / P(real)), which keeps the digits that a score near 1 loses) and score (P(fake)).
"""

from pathlib import Path
from typing import Annotated

import pandas as pd
import torch
from pydantic import Field

from stages.lib.errors import UserError, run_stage
from stages.lib.files import fresh_folder
from stages.lib.hardware import DeviceName, Hardware, Precision, set_up_hardware
from stages.lib.images import LabelledImages, make_loader, sequential_batches
from stages.lib.labels import read_labels, write_table
from stages.lib.model import Detector, fake_logit, load_detector
from stages.lib.params import StageParams, load_params
from stages.lib.progress import progress_bar

LABELS = Path("data/labels")
PACKED = Path("data/packed")
MODEL = Path("data/model")
SCORES = Path("data/scores")
SPLITS = ("val", "calibration", "test")


class PredictParams(StageParams):
    """Section `predict`."""

    batch_size: Annotated[int, Field(ge=1)]
    precision: Precision
    device: DeviceName
    num_workers: Annotated[int, Field(ge=0)]
    num_threads: Annotated[int, Field(ge=1)]


def main() -> None:
    """Write the score files of all splits, or none."""
    params = load_params("predict", PredictParams)
    hardware = set_up_hardware(params.device, params.precision, params.num_threads)
    detector, config = load_detector(MODEL)
    detector = detector.to(hardware.device, memory_format=torch.channels_last)
    print(f"device: {hardware}; model: {config.model}, epoch {config.best_epoch}", flush=True)
    with fresh_folder(SCORES) as scores:
        for split in SPLITS:
            labels = read_labels(LABELS / f"{split}.csv")
            images = LabelledImages(labels, PACKED, config.preprocessing)
            logits = predict_logits(detector, images, params, hardware, split)
            table = pd.DataFrame({"img_name": labels["img_name"], "logit": logits})
            if not torch.isfinite(logits).all():
                worst = table["img_name"][int((~torch.isfinite(logits)).nonzero()[0])]
                raise UserError(f"{split}: the score of {worst} is not finite; train a sound model")
            write_table(table.assign(score=torch.sigmoid(logits)), scores / f"{split}.csv")
            print(f"{split}: scored {len(table)} images", flush=True)


@torch.inference_mode()
def predict_logits(
    detector: Detector, images: LabelledImages, params: PredictParams, hardware: Hardware, name: str
) -> torch.Tensor:
    """Return float64 (N,): log(P(fake) / P(real)) of each image, in order."""
    batches = sequential_batches(len(images), params.batch_size)
    loader = make_loader(images, batches, params.num_workers, hardware.device.type == "cuda")
    logits = []
    with progress_bar(f"predict {name}", len(images)) as bar:
        for batch, _, _ in loader:
            with hardware.autocast():
                outputs = detector(batch.to(hardware.device, non_blocking=True))
            logits.append(fake_logit(outputs))
            bar.update(len(batch))
    return torch.cat(logits).cpu().double() if logits else torch.empty(0, dtype=torch.float64)


if __name__ == "__main__":
    run_stage(main)

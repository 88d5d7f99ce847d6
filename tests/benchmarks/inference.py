"""Time scoring as the notebooks do it against stages.predict, in one run on the same images.

Run: python -m tests.benchmarks.inference [--images 160] [--repeats 5]   (from the repository root)

Both score generated 512 px JPEG photographs with the same resnet18 at 256 px.
"""

import os
from dataclasses import replace
from pathlib import Path

import torch

from stages.lib.core.params import load_params
from stages.lib.detector.dataset import LabelledImages
from stages.lib.detector.hardware import set_up_hardware
from stages.lib.detector.inference import Inference
from stages.lib.detector.model import (
    DetectorConfig,
    create_model,
    resolve_preprocessing,
    save_detector,
)
from stages.lib.detector.preprocessing import Preprocessing
from stages.lib.prediction.params import PredictParams
from tests.benchmarks import notebook
from tests.benchmarks.notebook import IMAGE_SIZE, draw_photographs, pack
from tests.benchmarks.race import Rates, race, run_races


def save_random(folder: Path, model: torch.nn.Module, preprocessing: Preprocessing) -> None:
    """Save a resnet18 that is not trained as a detector, into a folder."""
    config = DetectorConfig(
        model="resnet18",
        model_args={},
        preprocessing=preprocessing,
        num_parameters=0,
        initial_weights="random",
        trained_in="random weights",
        best_epoch=0,
    )
    save_detector(folder, model.state_dict(), config)


def compare(folder: Path, num_images: int, repeats: int) -> Rates:
    """Return images per second of each repetition: {"baseline": [...], "ours": [...]}."""
    table = draw_photographs(folder / "photographs", num_images)
    labels = pack(folder, table)
    params = load_params("predict", PredictParams)
    workers = {"num_workers": os.cpu_count() or 2, "num_threads": torch.get_num_threads()}
    params = PredictParams.model_validate(params.model_dump() | workers)
    hardware = set_up_hardware(params.device, params.num_threads)
    model = create_model("resnet18", {}, "random")
    preprocessing = resolve_preprocessing(model, image_size=IMAGE_SIZE)
    images = LabelledImages(labels, folder / "packed", preprocessing)
    save_random(folder, model, preprocessing)
    chosen = {"views": params.views, "batch_size": params.batch_size}
    ours = replace(Inference.load(folder, hardware), **chosen)
    compiled = replace(Inference.load(folder, hardware), **chosen)
    compiled.detector.compile()
    runs = {
        "baseline": notebook.inference(folder / "photographs", table, model, hardware.device),
        "ours": lambda: ours.logits_of(images, params.num_workers, ""),
        "ours, compiled": lambda: compiled.logits_of(images, params.num_workers, ""),
    }
    return race(runs, num_images, repeats)


if __name__ == "__main__":
    run_races(__doc__, 160, {"inference": compare})

"""Show the validation images that the detector gets most wrong, and what its verdict hangs on.

params.yaml: explain; data/model, data/scores/val.csv, data/labels/val.csv, data/packed/val
  ->  data/explanations/{most_wrong.png, most_wrong.csv}, logged to the model's MLflow run
Run: python -m stages.explain

The heatmaps are occlusion maps (Zeiler & Fergus 2014, by Captum): a window slides over the image,
what it covers becomes the mean colour, and the map shows by how much log(P(fake) / P(real)) falls.
They work for every architecture and measure the model itself: a red region, covered, makes the
image look more real to the detector; a blue one, covered, makes it look more fake.
"""

from pathlib import Path
from typing import Annotated

import numpy as np
import pandas as pd
import torch
from captum.attr import Occlusion
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from pydantic import Field

from stages.lib.competition import CLASS_NAMES, FAKE, REAL
from stages.lib.errors import run_stage
from stages.lib.files import fresh_folder
from stages.lib.hardware import DeviceName, set_up_hardware
from stages.lib.images import LabelledImages
from stages.lib.labels import read_labels, write_table
from stages.lib.model import Detector, fake_logit, load_detector
from stages.lib.params import StageParams, load_params
from stages.lib.progress import progress_bar
from stages.lib.tracking import tracker_of

LABELS = Path("data/labels/val.csv")
SCORES = Path("data/scores/val.csv")
PACKED = Path("data/packed")
MODEL = Path("data/model")
EXPLANATIONS = Path("data/explanations")


class ExplainParams(StageParams):
    """Section `explain`."""

    num_images: Annotated[int, Field(ge=1, le=20)]
    window: Annotated[float, Field(gt=0, le=1)]
    stride: Annotated[float, Field(gt=0, le=1)]
    batch_size: Annotated[int, Field(ge=1)]
    device: DeviceName
    num_threads: Annotated[int, Field(ge=1)]


def main() -> None:
    """Write the page of the most wrong images and its table, or nothing."""
    params = load_params("explain", ExplainParams)
    hardware = set_up_hardware(params.device, "fp32", params.num_threads)
    detector, config = load_detector(MODEL)
    detector = detector.to(hardware.device)
    chosen = most_wrong(read_labels(LABELS), pd.read_csv(SCORES), params.num_images)
    images = LabelledImages(chosen, PACKED, config.preprocessing)
    pictures, maps = [], []
    with progress_bar("explain", len(images)) as bar:
        for index in range(len(images)):
            picture = images[0, index][0]
            pictures.append(picture.permute(1, 2, 0).numpy())
            maps.append(occlusion_map(detector, picture.to(hardware.device), params))
            bar.update(1)
    with fresh_folder(EXPLANATIONS) as folder:
        write_table(chosen[["img_name", "target", "family", "score"]], folder / "most_wrong.csv")
        draw_page(chosen, pictures, maps, params.num_images).savefig(folder / "most_wrong.png")
    print(f"{EXPLANATIONS / 'most_wrong.png'}: {len(chosen)} validation images", flush=True)
    tracker = tracker_of(MODEL)
    for path in sorted(EXPLANATIONS.iterdir()):
        tracker.log_file(path, "explanations")


def most_wrong(labels: pd.DataFrame, scores: pd.DataFrame, num_images: int) -> pd.DataFrame:
    """Return the labels and scores of the reals that score highest, then the fakes lowest."""
    scored = labels.assign(score=scores["score"])
    reals, fakes = scored[scored["target"] == REAL], scored[scored["target"] == FAKE]
    return pd.concat(
        [reals.nlargest(num_images, "score"), fakes.nsmallest(num_images, "score")],
        ignore_index=True,
    )


@torch.inference_mode()
def occlusion_map(detector: Detector, image: torch.Tensor, params: ExplainParams) -> np.ndarray:
    """Return float (S, S): by how much the logit falls where a window covers the pixel.

    image: uint8 (3, S, S) on the detector's device. A pixel's value is the mean over the windows
    that cover it. The covering colour is the mean of the normalisation, 0 after it.
    """
    window, stride = (
        max(1, round(share * image.shape[1])) for share in (params.window, params.stride)
    )
    occlusion = Occlusion(lambda inputs: fake_logit(detector.model(inputs)))
    effect = occlusion.attribute(
        detector.normalize(image[None]),
        sliding_window_shapes=(3, window, window),
        strides=(3, min(stride, window), min(stride, window)),
        perturbations_per_eval=params.batch_size,
    )
    return effect[0, 0].cpu().numpy()


def draw_page(
    chosen: pd.DataFrame, pictures: list[np.ndarray], maps: list[np.ndarray], num_columns: int
) -> Figure:
    """Draw each image above its heatmap, a pair of rows for each class."""
    figure = Figure(figsize=(2.1 * num_columns + 1.2, 10), dpi=100, layout="constrained")
    axes = figure.subplots(2 * len(CLASS_NAMES), num_columns, squeeze=False)
    for cell in axes.flat:
        cell.set_axis_off()
    places = chosen.groupby("target").cumcount()
    for picture, heat, column, row in zip(pictures, maps, places, chosen.itertuples(), strict=True):
        above, below = axes[2 * row.target : 2 * row.target + 2, column]
        above.imshow(picture)
        above.set_title(
            f"{CLASS_NAMES[row.target]}, score {row.score:.3f}\n{row.img_name[:16]}", fontsize=8
        )
        _overlay(below, picture, heat)
    figure.suptitle(
        "Most wrong: reals that score highest, fakes that score lowest.\n"
        "Below each: red speaks for fake, blue for real (by how much covering it moves the logit)",
        fontsize=10,
    )
    return figure


def _overlay(axes: Axes, picture: np.ndarray, heat: np.ndarray) -> None:
    largest = float(np.abs(heat).max()) or 1.0
    axes.imshow(picture.mean(axis=2), cmap="gray", vmin=0, vmax=255)
    axes.imshow(heat, cmap="RdBu_r", vmin=-largest, vmax=largest, alpha=0.55)
    axes.set_title(f"up to ±{largest:.2f}", fontsize=7)


if __name__ == "__main__":
    run_stage(main)

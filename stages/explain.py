"""Show what drives the verdict: in images that are judged wrongly, and in the most certain ones.

params.yaml: explain; data/model, data/scores/val.csv, data/labels/val.csv, data/packed
  ->  data/explanations/{page.html, images.csv, sheets/{wrong,confident}_{real,fake}.png}
Run: python -m stages.explain

A window covers the input place by place, and the heatmap shows by how much log(P(fake) / P(real))
falls (occlusion: Zeiler & Fergus 2014, by Captum): positive (red) where the place speaks for fake,
negative (blue) for real. It only asks the detector for scores, so it works for every architecture.
Covering a part of a real face may itself look like a manipulation. A comparison with the same
network with random weights (Adebayo et al. 2018) tells whether the maps depend on what was learnt.
"""

from typing import Annotated

import numpy as np
import pandas as pd
import torch
from captum.attr import Occlusion
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from pydantic import Field
from scipy.stats import rankdata

from stages.lib import paths
from stages.lib.core.files import fresh_folder, write_text
from stages.lib.core.labels import CLASS_NAMES, FAKE, REAL, read_labels
from stages.lib.core.params import StageParams, Threads, load_params
from stages.lib.core.progress import progress_bar
from stages.lib.core.running import run_stage
from stages.lib.core.tables import read_scores, write_table
from stages.lib.detector.dataset import LabelledImages
from stages.lib.detector.model import Detector, create_model, fake_logit, load_detector
from stages.lib.detector.preprocessing import decode
from stages.lib.detector.runtime import DeviceName, set_up_hardware
from stages.lib.report.forensics import FORENSIC_VIEWS
from stages.lib.report.html import as_png, html_image, html_page

SHEET_TITLES = {
    "wrong_real": "Reals that score highest: false alarms",
    "wrong_fake": "Fakes that score lowest: misses",
    "confident_real": "Reals that score lowest: certainly real",
    "confident_fake": "Fakes that score highest: certainly fake",
}
TITLE = {"fontsize": 7, "y": 1.0}
HOW_TO_READ = """
<p>Each row is one validation image. <b>heatmap</b>: red speaks for fake, blue for real, by how much
covering the place moves the log-odds; covering a part of a real face may itself look like a
manipulation. The views to its right involve no detector:</p>
<ul>
<li><b>blend edges</b>: changes of colour. A closed line that follows nothing in the scene is a seam.
<li><b>light</b>: brightness without detail. Face, neck and ears should be lit from one side.
<li><b>noise residual</b>: what a median filter removes. A smooth or rough patch is from elsewhere.
<li><b>error level</b>: change by one more JPEG compression. Patches with another compression history stand out.
<li><b>spectrum</b>: frequencies, the low ones in the middle. Regular points or a bright rim are signs of enlarging.
</ul>
<p>Each view has its own scale, written above it. None of them proves anything alone.</p>
"""  # noqa: E501


class ExplainParams(StageParams):
    """Section `explain`."""

    num_images: Annotated[int, Field(ge=1, le=20)]
    window: Annotated[float, Field(gt=0, le=1)]
    stride: Annotated[float, Field(gt=0, le=1)]
    batch_size: Annotated[int, Field(ge=1)]
    device: DeviceName
    num_threads: Threads


def main() -> None:
    """Write the sheets, the page and the table of the images, or nothing."""
    params = load_params("explain", ExplainParams)
    hardware = set_up_hardware(params.device, "fp32", params.num_threads)
    detector, config = load_detector(paths.MODEL)
    torch.manual_seed(0)
    untrained = create_model(config.model, config.model_args, "random")
    detectors = [detector, Detector(untrained, config.preprocessing).eval()]
    detectors = [one.to(hardware.device) for one in detectors]
    scores = read_scores(paths.SCORES / "val.csv")
    chosen = choose(read_labels(paths.LABELS / "val.csv"), scores, params.num_images)
    images = LabelledImages(chosen, paths.PACKED, config.preprocessing)
    inputs, maps, alike = [], [], []
    with progress_bar("explain", len(images)) as bar:
        for index in range(len(images)):
            inputs.append(images[0, index][0])
            on_device = inputs[-1].to(hardware.device)
            trained, random = (occlusion_map(one, on_device, params) for one in detectors)
            maps.append(trained)
            alike.append(rank_correlation(trained, random))
            bar.update(1)
    chosen["random_weights_correlation"] = np.round(alike, 4)
    write(chosen, images, inputs, maps)
    page = paths.EXPLANATIONS / "page.html"
    print(f"{page}: {len(chosen)} validation images; {sanity(chosen)}")


def write(
    chosen: pd.DataFrame,
    images: LabelledImages,
    inputs: list[torch.Tensor],
    maps: list[np.ndarray],
) -> None:
    """Write the table of the images, their sheets, and the page with all sheets."""
    with fresh_folder(paths.EXPLANATIONS) as folder:
        columns = ["sheet", "img_name", "target", "family", "score", "random_weights_correlation"]
        write_table(chosen[columns], folder / "images.csv")
        (folder / paths.SHEETS.name).mkdir()
        sheets = {}
        for name, rows in chosen.groupby("sheet", sort=False):
            parts = [
                (chosen.loc[row], original(images, row), inputs[row], maps[row])
                for row in rows.index
            ]
            sheets[name] = draw_sheet(SHEET_TITLES[name], parts)
            (folder / paths.SHEETS.name / f"{name}.png").write_bytes(sheets[name])
        write_text(folder / "page.html", make_page(sheets, chosen))


def choose(labels: pd.DataFrame, scores: pd.DataFrame, num_images: int) -> pd.DataFrame:
    """Return num_images for each sheet, the most extreme first: their labels, scores and sheet."""
    scored = labels.assign(score=scores["score"])
    reals, fakes = scored[scored["target"] == REAL], scored[scored["target"] == FAKE]
    sheets = {
        "wrong_real": reals.nlargest(num_images, "score"),
        "wrong_fake": fakes.nsmallest(num_images, "score"),
        "confident_real": reals.nsmallest(num_images, "score"),
        "confident_fake": fakes.nlargest(num_images, "score"),
    }
    tables = [table.assign(sheet=name) for name, table in sheets.items()]
    return pd.concat(tables, ignore_index=True)


def original(images: LabelledImages, index: int) -> np.ndarray:
    """Return an image as it was before it became the input of the model: uint8 (H, W, 3)."""
    whole = images.preprocessing.model_copy(update={"scaled_decoding": False})
    return decode(images.content(index), whole).permute(1, 2, 0).numpy()


# ---------------------------------------------------------------------------------------------
# Heatmaps


@torch.inference_mode()
def occlusion_map(detector: Detector, image: torch.Tensor, params: ExplainParams) -> np.ndarray:
    """Return float (S, S): by how much the logit falls where a window covers the pixel.

    image: uint8 (3, S, S) on the device of the detector. The value of a pixel is the mean over the
    windows that cover it. A window has the mean colour of the normalisation, which is 0 after it.
    """
    window, stride = (
        max(1, round(share * image.shape[1])) for share in (params.window, params.stride)
    )
    occlusion = Occlusion(lambda inputs: fake_logit(detector.model(inputs)))
    inputs = detector.normalize(image[None])
    num_channels = inputs.shape[1]
    effect = occlusion.attribute(
        inputs,
        sliding_window_shapes=(num_channels, window, window),
        strides=(num_channels, min(stride, window), min(stride, window)),
        perturbations_per_eval=params.batch_size,
    )
    return effect[0, 0].cpu().numpy()


def rank_correlation(trained: np.ndarray, random: np.ndarray) -> float:
    """Return Spearman's correlation of the pixels of two maps, -1 to 1; 0 where one map is flat."""
    ranks = [rankdata(values) for values in (trained, random)]
    if 0 in (np.ptp(ranks[0]), np.ptp(ranks[1])):
        return 0.0
    return float(np.corrcoef(*ranks)[0, 1])


def sanity(chosen: pd.DataFrame) -> str:
    """Say how much the maps resemble those of random weights."""
    found = chosen["random_weights_correlation"]
    return (
        f"rank correlation of the heatmaps with those of random weights: mean {found.mean():.2f}, "
        f"{found.min():.2f} to {found.max():.2f}"
    )


# ---------------------------------------------------------------------------------------------
# Pages


def make_page(sheets: dict[str, bytes], chosen: pd.DataFrame) -> str:
    """Return the page with all sheets."""
    parts = [
        f"<h2>{SHEET_TITLES[name]}</h2>\n{html_image(png, name)}" for name, png in sheets.items()
    ]
    check = (
        f"<p>Do the maps show what was learnt? {sanity(chosen)} ({len(chosen)} images). A value "
        "near 1 would mean that they show the picture and the architecture, not the training.</p>"
    )
    title = "What drives the verdict"
    return html_page(title, "\n".join([f"<h1>{title}</h1>", HOW_TO_READ, check, *parts]))


def draw_sheet(
    title: str, parts: list[tuple[pd.Series, np.ndarray, torch.Tensor, np.ndarray]]
) -> bytes:
    """Draw a row for each (label, original, input, heatmap): picture, heatmap, views; as a PNG."""
    columns = 2 + len(FORENSIC_VIEWS)
    height = 2.15 * len(parts) + 0.3
    figure = Figure(figsize=(1.75 * columns, height), dpi=90)
    axes = figure.subplots(len(parts), columns, squeeze=False)
    # Fixed places: the automatic layout of matplotlib takes longer than the heatmaps.
    figure.subplots_adjust(0.005, 0.1 / height, 0.995, 1 - 0.75 / height, 0.05, 0.25)
    for row, (label, picture, seen, heat) in zip(axes, parts, strict=True):
        for cell in row:
            cell.set_axis_off()
        row[0].imshow(picture)
        family = f" ({label.family})" if isinstance(label.family, str) else ""
        row[0].set_title(
            f"{label.img_name[:18]}\n{CLASS_NAMES[label.target]}{family}, {label.score:.3f}",
            **TITLE,
        )
        _overlay(row[1], seen.permute(1, 2, 0).numpy(), heat)
        for cell, (name, view) in zip(row[2:], FORENSIC_VIEWS.items(), strict=True):
            _show(cell, name, view(picture))
    figure.suptitle(title, fontsize=10, y=1 - 0.1 / height, va="top")
    return as_png(figure)


def _overlay(axes: Axes, picture: np.ndarray, heat: np.ndarray) -> None:
    largest = float(np.abs(heat).max()) or 1.0
    axes.imshow(picture.mean(axis=2), cmap="gray", vmin=0, vmax=255)
    axes.imshow(heat, cmap="RdBu_r", vmin=-largest, vmax=largest, alpha=0.55)
    axes.set_title(f"heatmap\nup to ±{largest:.2f}", **TITLE)


def _show(axes: Axes, name: str, view: np.ndarray) -> None:
    top = float(np.quantile(view, 0.995)) or 1.0  # a few bright pixels would hide the rest
    axes.imshow(view, cmap="magma", vmin=0, vmax=top)
    axes.set_title(f"{name}\n0 to {top:.3g}", **TITLE)


if __name__ == "__main__":
    run_stage(main)

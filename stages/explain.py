"""Show what drives the verdict: in images with a wrong verdict, and in the most certain ones.

params.yaml: explain; data/model, data/scores/{val.csv,views.json}, data/labels/val.*, data/packed
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
from pydantic import Field

from stages.lib import paths
from stages.lib.core.files import atomic_folder, write_text
from stages.lib.core.labels import CLASS_NAMES, FAKE, REAL
from stages.lib.core.params import load_params
from stages.lib.core.scores import read_labels_and_scores
from stages.lib.core.tables import write_table
from stages.lib.detector.dataset import LabelledImages
from stages.lib.detector.hardware import set_up_hardware
from stages.lib.detector.hardware_params import HardwareParams
from stages.lib.detector.inference import Inference
from stages.lib.detector.model import Detector, untrained
from stages.lib.images.decoding import decode_image
from stages.lib.progress import progress_bar
from stages.lib.report.heatmap import occlusion_map, rank_correlation
from stages.lib.report.html import html_image, html_page
from stages.lib.report.sheets import HOW_TO_READ, SheetRow, draw_sheet
from stages.lib.running import run_stage

SHEET_TITLES = {
    "wrong_real": "Reals that score highest: false alarms",
    "wrong_fake": "Fakes that score lowest: misses",
    "confident_real": "Reals that score lowest: certainly real",
    "confident_fake": "Fakes that score highest: certainly fake",
}


class ExplainParams(HardwareParams):
    """Section `explain`."""

    num_images: Annotated[int, Field(ge=1, le=20)]
    window: Annotated[float, Field(gt=0, le=1)]
    stride: Annotated[float, Field(gt=0, le=1)]
    batch_size: Annotated[int, Field(ge=1)]


def main() -> None:
    """Write the sheets, the page and the table of the images, or nothing."""
    params = load_params("explain", ExplainParams)
    hardware = set_up_hardware(params.device, params.num_threads)
    inference = Inference.load(paths.MODEL, hardware)
    config = inference.config
    torch.manual_seed(0)
    random = Detector(untrained(config), config.preprocessing).eval().to(hardware.device)
    chosen = choose(*read_labels_and_scores("val"), params.num_images)
    images = LabelledImages(chosen, paths.PACKED, config.preprocessing)
    inputs = [images.inputs(index) for index in range(len(images))]
    window = (params.window, params.stride, params.batch_size)
    maps, correlations = [], []
    with progress_bar("explain", len(images)) as bar:
        for image in inputs:
            maps.append(occlusion_map(inference.detector, image, *window))
            of_random = occlusion_map(random, image, *window)
            correlations.append(rank_correlation(maps[-1], of_random))
            bar.update(1)
    chosen["random_weights_correlation"] = np.round(correlations, 4)
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
    with atomic_folder(paths.EXPLANATIONS) as folder:
        columns = ["sheet", "img_name", "target", "family", "score", "random_weights_correlation"]
        write_table(chosen[columns], folder / "images.csv")
        (folder / paths.SHEETS.name).mkdir()
        sheets = {}
        for name, rows in chosen.groupby("sheet", sort=False):
            drawn = []
            for row in rows.index:
                pixels = decode_image(images.content(row)).pixels
                drawn.append(SheetRow(title_of(chosen.loc[row]), pixels, inputs[row], maps[row]))
            sheets[name] = draw_sheet(SHEET_TITLES[name], drawn)
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


def title_of(label: pd.Series) -> str:
    """Return the name, the class and the score of an image in two lines."""
    family = f" ({label.family})" if isinstance(label.family, str) else ""
    verdict = f"{CLASS_NAMES[label.target]}{family}, {label.score:.3f}"
    return f"{label.img_name[:18]}\n{verdict}"


def sanity(chosen: pd.DataFrame) -> str:
    """Say how much the maps resemble those of random weights."""
    values = chosen["random_weights_correlation"]
    return (
        f"rank correlation of the heatmaps with those of random weights: mean {values.mean():.2f}, "
        f"{values.min():.2f} to {values.max():.2f}"
    )


# ---------------------------------------------------------------------------------------------
# Pages


def make_page(sheets: dict[str, bytes], chosen: pd.DataFrame) -> str:
    """Return the page with all sheets."""
    sections = [
        f"<h2>{SHEET_TITLES[name]}</h2>\n{html_image(png, name)}" for name, png in sheets.items()
    ]
    check = (
        f"<p>Do the maps show what was learnt? {sanity(chosen)} ({len(chosen)} images). A value "
        "near 1 would mean that they show the image and the architecture, not the training.</p>"
    )
    title = "What drives the verdict"
    return html_page(title, "\n".join([f"<h1>{title}</h1>", HOW_TO_READ, check, *sections]))


if __name__ == "__main__":
    run_stage(main)

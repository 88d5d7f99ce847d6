"""Show what drives the verdict: in images that are judged wrongly, and in the most certain ones.

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
from stages.lib.core.params import StageParams, Threads, load_params
from stages.lib.core.scores import labels_and_scores
from stages.lib.core.tables import write_table
from stages.lib.detector.dataset import LabelledImages
from stages.lib.detector.hardware import DeviceName, set_up_hardware
from stages.lib.detector.model import Detector, create_model, load_detector
from stages.lib.detector.preprocessing import decode
from stages.lib.progress import progress_bar
from stages.lib.report.heatmap import occlusion_map, rank_correlation
from stages.lib.report.html import html_image, html_page
from stages.lib.report.sheets import HOW_TO_READ, Row, draw_sheet
from stages.lib.running import run_stage

SHEET_TITLES = {
    "wrong_real": "Reals that score highest: false alarms",
    "wrong_fake": "Fakes that score lowest: misses",
    "confident_real": "Reals that score lowest: certainly real",
    "confident_fake": "Fakes that score highest: certainly fake",
}


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
    hardware = set_up_hardware(params.device, params.num_threads)
    detector, config = load_detector(paths.MODEL)
    torch.manual_seed(0)
    untrained = create_model(config.model, config.model_args, "random")
    detectors = [detector, Detector(untrained, config.preprocessing).eval()]
    detectors = [one.to(hardware.device) for one in detectors]
    chosen = choose(*labels_and_scores("val"), params.num_images)
    images = LabelledImages(chosen, paths.PACKED, config.preprocessing)
    inputs, maps, alike = [], [], []
    with progress_bar("explain", len(images)) as bar:
        for index in range(len(images)):
            inputs.append(images[0, index][0])
            on_device = inputs[-1].to(hardware.device)
            trained, random = (
                occlusion_map(one, on_device, params.window, params.stride, params.batch_size)
                for one in detectors
            )
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
    with atomic_folder(paths.EXPLANATIONS) as folder:
        columns = ["sheet", "img_name", "target", "family", "score", "random_weights_correlation"]
        write_table(chosen[columns], folder / "images.csv")
        (folder / paths.SHEETS.name).mkdir()
        sheets = {}
        for name, rows in chosen.groupby("sheet", sort=False):
            parts = [
                Row(title_of(chosen.loc[row]), original(images, row), inputs[row], maps[row])
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


def title_of(label: pd.Series) -> str:
    """Return the name, the class and the score of an image in two lines."""
    family = f" ({label.family})" if isinstance(label.family, str) else ""
    verdict = f"{CLASS_NAMES[label.target]}{family}, {label.score:.3f}"
    return f"{label.img_name[:18]}\n{verdict}"


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
        "near 1 would mean that they show the image and the architecture, not the training.</p>"
    )
    title = "What drives the verdict"
    return html_page(title, "\n".join([f"<h1>{title}</h1>", HOW_TO_READ, check, *parts]))


if __name__ == "__main__":
    run_stage(main)

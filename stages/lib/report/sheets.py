"""Sheets of images with their heatmaps and forensic views, and how to read them."""

from dataclasses import dataclass

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from stages.lib.images.decoding import middle_of
from stages.lib.report.forensics import FORENSIC_VIEWS, white_level
from stages.lib.report.html import as_png

TITLE = {"fontsize": 7, "y": 1.0, "parse_math": False}  # a name of a family may have dollars
HOW_TO_READ = """
<p>Each row is one image. <b>heatmap</b>: red speaks for fake, blue for real, by how much
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


@dataclass(frozen=True)
class SheetRow:
    """One image of a sheet."""

    title: str  # up to two lines
    image: np.ndarray  # uint8 (H, W, 3), as in its file
    model_input: torch.Tensor  # uint8 (3, S, S)
    heat: np.ndarray  # float (S, S), see heatmap.py


def draw_sheet(title: str, rows: list[SheetRow]) -> bytes:
    """Draw the image, the heatmap and the forensic views of each row, as a PNG."""
    columns = 2 + len(FORENSIC_VIEWS)
    height = 2.15 * len(rows) + 0.3
    figure = Figure(figsize=(1.75 * columns, height), dpi=90)
    axes = figure.subplots(len(rows), columns, squeeze=False)
    # Fixed places: the automatic layout of matplotlib takes longer than the heatmaps.
    figure.subplots_adjust(0.005, 0.1 / height, 0.995, 1 - 0.75 / height, 0.05, 0.25)
    for cells, row in zip(axes, rows, strict=True):
        for cell in cells:
            cell.set_axis_off()
        cells[0].imshow(row.image)
        cells[0].set_title(row.title, **TITLE)
        _overlay(cells[1], row.model_input.permute(1, 2, 0).numpy(), row.heat)
        for cell, (name, view) in zip(cells[2:], FORENSIC_VIEWS.items(), strict=True):
            _show(cell, name, view(middle_of(row.image)))
    figure.suptitle(title, fontsize=10, y=1 - 0.1 / height, va="top")
    return as_png(figure)


def _overlay(axes: Axes, image: np.ndarray, heat: np.ndarray) -> None:
    largest = float(np.abs(heat).max()) or 1.0
    axes.imshow(image.mean(axis=2), cmap="gray", vmin=0, vmax=255)
    axes.imshow(heat, cmap="RdBu_r", vmin=-largest, vmax=largest, alpha=0.55)
    axes.set_title(f"heatmap\nup to ±{largest:.2f}", **TITLE)


def _show(axes: Axes, name: str, view: np.ndarray) -> None:
    top = white_level(view)
    axes.imshow(view, cmap="magma", vmin=0, vmax=top)
    axes.set_title(f"{name}\n0 to {top:.3g}", **TITLE)

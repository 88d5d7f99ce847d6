"""Draw each kind of pseudo-fake on drawn faces: the real, the pseudo-fake and their difference.

Run: python -m stages.chores.show_pseudo_fakes FILE.png
"""

from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure

from stages.lib.detector.preprocessing import Preprocessing, decode
from stages.lib.drawing.photograph import photograph
from stages.lib.drawing.portrait import draw_person
from stages.lib.running import run_command
from stages.lib.training.face_masks import Source
from stages.lib.training.marked_image import MarkedImage, mark
from stages.lib.training.pseudo_fakes import KINDS, Kinds, make_pair
from stages.tools.command_line import parser_of

SIDE = 128  # pixels
FACES = 3
FACE_WIDTH = [0.4, 0.7]  # as a share of the side
DECODING = Preprocessing(image_size=SIDE, interpolation="bilinear", mean=[0] * 3, std=[1] * 3)


def main() -> None:
    """Write the image."""
    parser = parser_of(__doc__, "stages.chores.show_pseudo_fakes")
    parser.add_argument("file", type=Path, metavar="FILE.png")
    draw().savefig(parser.parse_args().file)


def draw() -> Figure:
    """Return the figure: a row for each kind, three columns for each face."""
    figure = Figure(figsize=(1.1 * 3 * FACES, 1.25 * len(KINDS)), dpi=90, layout="constrained")
    axes = figure.subplots(len(KINDS), 3 * FACES)
    for row, kind in zip(axes, KINDS, strict=True):
        for number in range(FACES):
            cells = row[3 * number : 3 * number + 3]
            for cell, image in zip(cells, pair_with_difference(kind, number), strict=True):
                cell.imshow(image.permute(1, 2, 0).numpy())
                cell.set_xticks([])
                cell.set_yticks([])
        row[0].set_ylabel(kind)
    for number, cell in enumerate(axes[0]):
        cell.set_title(("real", "pseudo-fake", "difference x 4")[number % 3], fontsize=7)
    return figure


def pair_with_difference(kind: str, number: int) -> list[torch.Tensor]:
    """Return a real, its pseudo-fake and four times their difference, uint8 (3, S, S)."""
    random = np.random.default_rng([number, 7])
    source = Source(draw_face(random), FACE_WIDTH)
    kinds = Kinds.model_validate({name: float(name == kind) for name in KINDS})
    real, fake = make_pair(source, kinds, random)
    difference = 4 * (real.float() - fake.float()).abs()
    return [real, fake, difference.clamp(0, 255).byte()]


def draw_face(random: np.random.Generator) -> MarkedImage:
    """Return a drawn face of SIDE pixels."""
    return mark(decode(photograph(draw_person(random), "", SIDE, random), DECODING).tensor)


if __name__ == "__main__":
    run_command(main)

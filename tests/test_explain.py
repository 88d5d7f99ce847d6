"""Which images are shown, and that a heatmap tells what the verdict hangs on."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from stages.explain import ExplainParams, draw_page, most_wrong, occlusion_map
from stages.lib.images import Preprocessing
from stages.lib.model import Detector

PARAMS = ExplainParams(
    num_images=2, window=0.25, stride=0.125, batch_size=7, device="cpu", num_threads=1
)


class BrightCorner(torch.nn.Module):
    """Calls an image the more fake the brighter its upper left quarter is."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        logit = images[:, :, :16, :16].mean(dim=(1, 2, 3))
        return torch.stack([torch.zeros_like(logit), logit], dim=1)


def detector(network: torch.nn.Module) -> Detector:
    preprocessing = Preprocessing(
        image_size=32, interpolation="bilinear", mean=[0.5] * 3, std=[0.2] * 3
    )
    return Detector(network, preprocessing).eval()


@pytest.mark.parametrize(("brightness", "sign"), [(255, 1), (0, -1)])
def test_the_map_is_red_where_the_model_finds_fake_and_blue_where_real(
    brightness: int, sign: int
) -> None:
    image = torch.full((3, 32, 32), brightness, dtype=torch.uint8)
    heat = sign * occlusion_map(detector(BrightCorner()), image, PARAMS)
    assert heat.shape == (32, 32)
    assert heat[:12, :12].min() > 0
    assert np.abs(heat[20:, 20:]).max() == pytest.approx(0, abs=1e-6)


def test_the_map_adds_up_the_effect_of_one_window() -> None:
    """One window over the whole image: the map is the fall of the logit to the mean colour's."""
    image = torch.full((3, 32, 32), 255, dtype=torch.uint8)
    whole = PARAMS.model_copy(update={"window": 1.0, "stride": 1.0})
    heat = occlusion_map(detector(BrightCorner()), image, whole)
    assert heat == pytest.approx(np.full((32, 32), 0.5 / 0.2), rel=1e-5)


def test_the_most_wrong_are_high_reals_and_low_fakes() -> None:
    targets = pd.array([0, 0, 0, 1, 1, 1], dtype="Int8")
    labels = pd.DataFrame({"img_name": list("abcdef"), "target": targets})
    scores = pd.DataFrame({"score": [0.9, 0.1, 0.95, 0.5, 0.05, 0.99]})
    assert most_wrong(labels, scores, 2)["img_name"].tolist() == ["c", "a", "e", "d"]
    assert len(most_wrong(labels, scores, 20)) == 6


def test_the_page_has_a_picture_and_a_map_for_each_image() -> None:
    chosen = pd.DataFrame(
        {"img_name": ["a", "b", "c"], "target": [0, 0, 1], "score": [0.9, 0.8, 0]}
    )
    pictures = [np.zeros((8, 8, 3), np.uint8)] * 3
    figure = draw_page(chosen, pictures, [np.zeros((8, 8))] * 3, 2)
    shown = [axes for axes in figure.axes if axes.images]
    assert len(shown) == 6
    assert "real, score 0.900" in shown[0].get_title()


def test_the_stage_writes_its_page_and_table(pipeline: Path) -> None:
    folder = pipeline / "data/explanations"
    table = pd.read_csv(folder / "most_wrong.csv")
    assert table["target"].tolist() == [0] * 3 + [1] * 3
    assert table["score"][:3].is_monotonic_decreasing
    assert table["score"][3:].is_monotonic_increasing
    with Image.open(folder / "most_wrong.png") as page:
        assert page.width > 500

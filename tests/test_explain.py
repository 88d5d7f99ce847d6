"""Which images are shown, and that a heatmap tells what drives the verdict."""

from base64 import b64encode
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from scipy import ndimage

from stages.explain import SHEET_TITLES, choose, title_of
from stages.lib.detector.model import Detector
from stages.lib.detector.preprocessing import Preprocessing
from stages.lib.report.forensics import FORENSIC_VIEWS
from stages.lib.report.heatmap import occlusion_map, rank_correlation
from stages.lib.report.sheets import SheetRow, draw_sheet

WINDOW = (0.25, 0.125, 7)  # side, step, batch size


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
    heat = sign * occlusion_map(detector(BrightCorner()), image, *WINDOW)
    assert heat.shape == (32, 32)
    assert heat[:12, :12].min() > 0
    assert np.abs(heat[20:, 20:]).max() == pytest.approx(0, abs=1e-6)


def test_the_map_adds_up_the_effect_of_one_window() -> None:
    """One window over the whole image: the map is the fall of the logit to the mean colour's."""
    image = torch.full((3, 32, 32), 255, dtype=torch.uint8)
    heat = occlusion_map(detector(BrightCorner()), image, 1.0, 1.0, 64)
    assert heat == pytest.approx(np.full((32, 32), 0.5 / 0.2), rel=1e-5)


def test_the_most_wrong_and_the_surest_of_each_class_are_shown() -> None:
    targets = pd.array([0, 0, 0, 1, 1, 1], dtype="Int8")
    labels = pd.DataFrame({"img_name": list("abcdef"), "target": targets})
    scores = pd.DataFrame({"score": [0.9, 0.1, 0.95, 0.5, 0.05, 0.99]})
    chosen = choose(labels, scores, 2).groupby("sheet")["img_name"].agg(list).to_dict()
    assert chosen == {
        "wrong_real": ["c", "a"],
        "wrong_fake": ["e", "d"],
        "confident_real": ["b", "a"],
        "confident_fake": ["f", "d"],
    }
    assert len(choose(labels, scores, 20)) == 12


def test_a_map_is_compared_by_the_order_of_its_pixels() -> None:
    values = np.arange(16.0).reshape(4, 4)
    assert rank_correlation(values, values**3) == pytest.approx(1)
    assert rank_correlation(values, -values) == pytest.approx(-1)
    assert rank_correlation(values, np.ones((4, 4))) == 0


def test_a_sheet_has_image_map_and_every_view_for_each_image() -> None:
    label = pd.Series({"img_name": "a.jpg", "target": 1, "family": "swap", "score": 0.25})
    assert title_of(label) == "a.jpg\nfake (swap), 0.250"
    image = np.random.default_rng(0).integers(0, 256, (40, 30, 3), dtype=np.uint8)
    seen = torch.zeros((3, 32, 32), dtype=torch.uint8)
    rows = [SheetRow(title_of(label), image, seen, np.zeros((32, 32)))] * 2
    png = draw_sheet("title", rows)
    with Image.open(BytesIO(png)) as sheet:
        assert sheet.width > 500 and sheet.height > 300
    assert png == draw_sheet("title", rows)
    label["family"] = "$\\frac$"  # no formula
    draw_sheet("title", [SheetRow(title_of(label), image, seen, np.zeros((32, 32)))])


def test_the_stage_writes_its_sheets_page_and_table(pipeline: Path) -> None:
    folder = pipeline / "data/explanations"
    table = pd.read_csv(folder / "images.csv")
    assert table["sheet"].unique().tolist() == list(SHEET_TITLES)
    for name, rows in table.groupby("sheet"):
        assert rows["target"].tolist() == [int(name.endswith("fake"))] * 2
        falls = name in ("wrong_real", "confident_fake")
        assert rows["score"].is_monotonic_decreasing == falls
    page = (folder / "page.html").read_text()
    for name, title in SHEET_TITLES.items():
        assert title in page
        assert b64encode((folder / "sheets" / f"{name}.png").read_bytes()).decode() in page
    correlation = table["random_weights_correlation"]
    assert f"mean {correlation.mean():.2f}" in page
    assert correlation.mean() < 0.9  # the maps of these weights are not those of any


def patched(make: Callable[[np.ndarray], np.ndarray]) -> tuple[np.ndarray, tuple[slice, slice]]:
    """Return a noisy image whose middle is replaced by make(middle), and where that is."""
    random = np.random.default_rng(0)
    rows, columns = np.mgrid[:96, :96]
    smooth = 90 + 40 * np.sin(rows / 15)[..., None] + columns[..., None] / 4
    image = np.clip(smooth + random.normal(0, 6, (96, 96, 3)), 0, 255).astype(np.uint8)
    where = (slice(32, 64), slice(32, 64))
    image[where] = make(image[where])
    return image, where


def shifted(middle: np.ndarray) -> np.ndarray:
    return np.clip(middle + np.array([25, -10, -10]), 0, 255).astype(np.uint8)


def smoothed(middle: np.ndarray) -> np.ndarray:
    return ndimage.gaussian_filter(middle, (2, 2, 0))


def compressed(middle: np.ndarray) -> np.ndarray:
    buffer = BytesIO()
    Image.fromarray(middle).save(buffer, "JPEG", quality=40)
    return np.asarray(Image.open(buffer))


def test_each_view_shows_what_it_is_for() -> None:
    image, where = patched(shifted)
    edges = FORENSIC_VIEWS["blend edges"](image)
    seam = np.zeros_like(edges, dtype=bool)
    seam[where] = True
    seam[34:62, 34:62] = False
    assert edges[seam].mean() > 2 * edges[~seam].mean()
    image, where = patched(smoothed)
    noise = FORENSIC_VIEWS["noise residual"](image)
    assert noise[where].mean() < 0.3 * noise[:24].mean()
    image, where = patched(compressed)
    level = FORENSIC_VIEWS["error level"](image)
    assert level[where].mean() < 0.7 * level[:24].mean()
    image, where = patched(lambda middle: middle // 3)
    assert FORENSIC_VIEWS["light"](image)[48, 48] < 0.75 * FORENSIC_VIEWS["light"](image)[12, 12]


def test_the_spectrum_shows_the_grid_that_enlarging_leaves() -> None:
    noise = np.random.default_rng(0).integers(0, 256, (24, 24, 3), dtype=np.uint8)
    enlarged = noise.repeat(4, axis=0).repeat(4, axis=1)
    plain = np.random.default_rng(0).integers(0, 256, (96, 96, 3), dtype=np.uint8)
    at_a_zero = (48 + 24, slice(0, 96))  # repeating 4 times removes a quarter of the frequencies
    assert (
        FORENSIC_VIEWS["spectrum"](enlarged)[at_a_zero].mean()
        < 0.8 * FORENSIC_VIEWS["spectrum"](plain).mean()
    )


@pytest.mark.parametrize("size", [(5, 7), (64, 64), (40, 90)])
def test_every_view_has_the_images_size(size: tuple[int, int]) -> None:
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    for name, view in FORENSIC_VIEWS.items():
        shown = view(image)
        assert shown.shape == size, name
        assert shown.min() >= 0 and np.isfinite(shown).all(), name

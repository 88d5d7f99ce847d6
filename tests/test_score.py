"""Detectors of other people that are called: what they may return, and when a mistake is told."""

import hashlib
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pandas as pd
import pyarrow as pa
import pytest
import timm
import torch
from onnx import TensorProto, helper, numpy_helper
from PIL import Image
from scipy.special import expit

from stages.lib import paths
from stages.lib.core.errors import UserError
from stages.lib.core.labels import LABEL_TYPES, write_labels
from stages.lib.detector.model import load_detector
from stages.lib.images.packed_images import IMAGE_SCHEMA, image_batch
from stages.lib.prediction.perturbations import VARIANTS, variants_of
from stages.lib.score_files.callables import CallableDetector, load_callable
from stages.lib.verdict.networks import export_network
from stages.tools import score as tool
from tests.conftest import ROOT, run, set_params

Images = list[np.ndarray]
NUM_VAL, NUM_CALIBRATION, NUM_PERTURBED = 6, 5, 2
WEIGHTS = np.array([[-9.0, 9.0], [-4.0, 4.0], [2.0, -2.0]])  # of a drawn network: channels, outputs


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with labels, packed images and parameters, in which the command runs."""
    total = NUM_VAL + NUM_CALIBRATION
    contents = [encoded(seed) for seed in range(total)]
    folder = tmp_path / "data/packed/training/val"
    folder.mkdir(parents=True)
    with pa.ipc.new_file(str(folder / "images-00000.arrow"), IMAGE_SCHEMA) as file:
        file.write_batch(image_batch(contents))
    rows = np.arange(total)
    table = pd.DataFrame(
        {"img_name": [f"{row}.png" for row in rows], "target": rows % 2, "family": "", "source": ""}
        | {
            "width": 30,
            "height": 40,
            "jpeg_quality": 90,
            "face": 0.0,
            "set": "training/val",
            "row": rows,
        }
        | {"group": rows, "video": ""}
        | {"sha256": [hashlib.sha256(content).hexdigest() for content in contents]}
    )[list(LABEL_TYPES)]
    parts = {"val": table[:NUM_VAL], "calibration": table[NUM_VAL:]}
    (tmp_path / "data/labels").mkdir()
    for name in ("val", "calibration", "test", "held_out", "held_out_sources", "evaluation"):
        write_labels(parts.get(name, table[:0]), tmp_path / f"data/labels/{name}.csv")
    shutil.copy(ROOT / "params.yaml", tmp_path)
    set_params(tmp_path, {"predict.robustness_images": NUM_PERTURBED})
    monkeypatch.chdir(tmp_path)
    sizes.clear()
    return tmp_path


def image(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (40, 30, 3), dtype=np.uint8)


def encoded(seed: int) -> bytes:
    buffer = BytesIO()
    Image.fromarray(image(seed)).save(buffer, "PNG")
    return buffer.getvalue()


def call(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> None:
    monkeypatch.setattr(sys, "argv", ["score", *map(str, arguments)])
    tool.main()


def refused(words: str, act: Callable[[], object]) -> None:
    """Check that an act ends in one line with these words."""
    with pytest.raises(UserError, match=words) as caught:
        act()
    message = str(caught.value)
    assert "\n" not in message and len(message) < 300


def written(place: Path) -> set[str]:
    """Return the names of the files that are new in a place, hidden ones too."""
    return {one.name for one in place.iterdir()} - {"data", "params.yaml"}


# ---------------------------------------------------------------------------------------------
# Detectors in Python

sizes: list[int] = []  # of the batches that `brightness` has got


def brightness(images: Images) -> list[float]:
    sizes.append(len(images))
    return [float(image.mean()) / 255 for image in images]


def brightness_then_black(images: Images) -> list[float]:
    """Score, and write into the images, as a careless detector does."""
    scores = brightness(images)
    for image in images:
        assert image.flags.c_contiguous
        image[:] = 0
    return scores


def logits(images: Images) -> torch.Tensor:
    return torch.tensor(brightness(images), requires_grad=True)[:, None] * 40 - 20


def fails_after_all_images(images: Images) -> list[float]:
    if sum(sizes) >= NUM_VAL + NUM_CALIBRATION:
        raise ValueError("out of memory")
    return brightness(images)


def ends(images: Images) -> None:
    sys.exit("no weights")


def detector(returned: Any, scale: str = "probability") -> CallableDetector:
    return CallableDetector("det:score", lambda images: returned, scale)


@pytest.mark.parametrize(
    "returned",
    [
        [0.25, 0.5],
        ((0.25,), (0.5,)),
        np.array([[0.25], [0.5]], dtype=np.float16),
        torch.tensor([0.25, 0.5], requires_grad=True),
        torch.tensor([[0.25], [0.5]], dtype=torch.bfloat16),
        [torch.tensor(0.25, requires_grad=True), torch.tensor(0.5, dtype=torch.bfloat16)],
        pd.Series([0.25, 0.5], index=[7, 3]),
    ],
)
def test_numbers_of_every_usual_kind_are_taken(returned: Any) -> None:
    scores = detector(returned).score([image(0)] * 2)
    assert scores.dtype == np.float64 and scores.tolist() == [0.25, 0.5]


def test_one_image_may_have_a_single_number() -> None:
    assert detector(torch.tensor(0.5)).score([image(0)]).tolist() == [0.5]


@pytest.mark.parametrize(
    ("returned", "words"),
    [
        (["0.1", "0.2"], "det:score: gave strings for 2 images; return one number for each"),
        (np.array([1j, 2]), "gave complex numbers for 2 images"),
        (torch.tensor([1j, 2]), "gave complex numbers for 2 images"),
        (None, "gave a NoneType, no numbers, for 2 images"),
        ([0.1, 0.2, 0.3], "gave 3 numbers for 2 images; return one number for each image"),
        ([[0.1, 0.9], [0.2, 0.8]], r"gave an array of shape \(2, 2\) for 2 images"),
        (0.5, r"gave an array of shape \(\) for 2 images"),
        ([0.5, np.nan], r"gave numbers that are not finite \(nan\) for 1 of 2 images"),
        ([-np.inf, np.inf], r"not finite \(-inf\) for 2 of 2 images"),
        ([-1.5, 0.5], "-1.5 to 0.5 are no probabilities of a fake; return 0 to 1, or give --scale"),
        ([[0.5], [0.1, 0.2]], "failed on 2 images: ValueError"),
    ],
)
def test_other_values_are_one_line(returned: Any, words: str) -> None:
    refused(words, lambda: detector(returned).score([image(0)] * 2))


def test_the_end_of_the_program_is_told_but_a_stop_goes_through() -> None:
    ending = load_callable("tests.test_score:ends", 1)
    refused(
        r"ends: failed on 1 image: it ended the program by sys.exit\('no weights'\)",
        lambda: ending.score([image(0)]),
    )

    def stopped(images: object) -> None:
        raise SystemExit(128 + signal.SIGTERM)

    with pytest.raises(SystemExit):
        CallableDetector("det:score", stopped, "logit").score([image(0)])


def test_a_module_that_ends_the_program_is_one_line(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (place / "det.py").write_text("import argparse\nargparse.ArgumentParser().parse_args()\n")
    words = r"det:lst: cannot be imported: it ended the program by sys.exit\(2\).* put it under `if"
    refused(words, lambda: call(monkeypatch, "det:lst", "--out", "a.csv"))


def test_the_command_ends_with_1_where_a_detector_ends_the_process(place: Path) -> None:
    (place / "det.py").write_text("import os\ndef score(images): os._exit(0)\n")
    done = subprocess.run(
        [sys.executable, "-m", "stages.tools.score", "det:score", "--out", "a.csv"],
        capture_output=True,
        text=True,
        env={"PYTHONPATH": str(ROOT), "PATH": ""},
    )
    assert done.returncode == 1
    assert done.stderr.startswith("error: the detector's code ended the program")
    assert written(place) - {"__pycache__"} == {"det.py"}


@pytest.mark.parametrize(
    ("body", "code", "words"),
    [
        ("pass", 0, ""),
        ("raise UserError('a: b; c')", 1, "error: a: b; c\n"),
        ("sys.exit(7)", 7, ""),
        ("os._exit(9)", 9, ""),
        ("ctypes.CDLL(None).exit(0)", 1, "error: the detector's code ended the program"),
        ("os.execv(sys.executable, ['python', '-c', ''])", 1, "error: the detector's code ended"),
        ("os.kill(os.getpid(), signal.SIGKILL)", 137, "error: ended by signal 9\n"),
        ("os.kill(os.getppid(), signal.SIGTERM); time.sleep(60)", 143, ""),
        ("os.killpg(0, signal.SIGINT); time.sleep(60)", 130, "stopped by Ctrl-C\n"),
    ],
)
def test_a_command_in_its_own_process_ends_as_its_code_says(
    body: str, code: int, words: str
) -> None:
    program = (
        "import ctypes, os, signal, sys, time\n"
        "from stages.lib.core.errors import UserError\n"
        "from stages.lib.score_files.own_process import run_in_own_process\n"
        f"def main(): {body}\n"
        "run_in_own_process(main)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        cwd=ROOT,
        start_new_session=True,
    )
    assert done.returncode == code and done.stderr.startswith(words)
    assert words or not done.stderr


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("no_module:score", "no_module:score: cannot be imported: ModuleNotFoundError"),
        ("tests.test_score:nothing", "cannot be imported: AttributeError"),
        ("tests.test_score:WEIGHTS", "is a ndarray and no function"),
        ("word", "word: no detector; give module:function, FILE.onnx or models:/NAME@ALIAS"),
        ("gone.onnx", "gone.onnx: no ONNX file that can be run"),
        ("det.py:lst", "det.py:lst: names a file and no module; write det:lst$"),
        ("/their/code/det.py:lst", "write det:lst, with PYTHONPATH=/their/code$"),
    ],
)
def test_what_is_no_detector_is_one_line(name: str, words: str) -> None:
    refused(words, lambda: load_callable(name, 1))


# ---------------------------------------------------------------------------------------------
# ONNX files


def draw(
    file: Path, weights: np.ndarray = WEIGHTS, end: str = "", shape: tuple[str | int, ...] = ()
) -> Path:
    """Write a network: the means of the channels times weights, (3, K), and Softmax or Sigmoid."""
    nodes = [
        helper.make_node("GlobalAveragePool", ["images"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["means"]),
        helper.make_node("MatMul", ["means", "weights"], ["sums"]),
        helper.make_node(end or "Identity", ["sums"], ["outputs"]),
    ]
    shape = shape or ("N", 3, 16, 16)
    constants = [numpy_helper.from_array(weights.astype(np.float32), "weights")]
    return write_network(file, nodes, shape, (shape[0], weights.shape[1]), constants)


def write_network(
    file: Path,
    nodes: list[Any],
    shape: tuple[str | int, ...],
    output: tuple[str | int, ...],
    constants: list[Any],
) -> Path:
    graph = helper.make_graph(
        nodes,
        "drawn",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, list(shape))],
        [helper.make_tensor_value_info("outputs", TensorProto.FLOAT, list(output))],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, str(file))
    return file


def both_sums(images: Images) -> np.ndarray:
    """Return what a drawn network of WEIGHTS gives images of 16 x 16, float (N, 2)."""
    return np.array([image.mean(axis=(0, 1)) / 255 for image in images]) @ WEIGHTS


@pytest.fixture
def small() -> Images:
    return [np.full((16, 16, 3), (9 * n, 255 - 20 * n, 70), dtype=np.uint8) for n in range(10)]


@pytest.mark.parametrize(
    "shape",
    [
        ("N", "H", "W", 3),
        ("N", 3, "H", 64),
        ("N", 3, "H", "W"),
        ("N", 1, 64, 64),
        ("N", 3, 64, 32),
        ("N", 64),
        (),
    ],
)
def test_other_layouts_of_an_onnx_file_are_refused(
    tmp_path: Path, shape: tuple[str | int, ...]
) -> None:
    nodes = [helper.make_node("Identity", ["images"], ["outputs"])]
    file = write_network(tmp_path / "a.onnx", nodes, shape, shape, [])
    refused(
        r"its input is tensor\(float\) .*; it must be uint8 or float32 \(N, 3, S, S\) of a ",
        lambda: load_callable(str(file), 1),
    )


@pytest.mark.parametrize("size", ["N", 1, 7])
def test_a_fixed_number_of_images_is_filled_up(
    tmp_path: Path, small: Images, size: str | int
) -> None:
    file = draw(tmp_path / "a.onnx", shape=(size, 3, 16, 16))
    network = load_callable(str(file), 1)
    right = both_sums(small) @ [-1, 1]
    assert network.scale == "logit"
    assert network.score(small).tolist() == pytest.approx(right.tolist(), abs=1e-5)
    assert network.score(small[:3]).tolist() == pytest.approx(right[:3].tolist(), abs=1e-5)


def test_probabilities_of_an_onnx_file_need_their_scale(tmp_path: Path, small: Images) -> None:
    softmax = str(draw(tmp_path / "softmax.onnx", end="Softmax"))
    for scale in (None, "logit"):
        with pytest.raises(UserError, match="sum to 1: these are probabilities; give --scale prob"):
            load_callable(softmax, 1, scale)
    right = expit(both_sums(small) @ [-1, 1])
    scores = load_callable(softmax, 1, "probability").score(small)
    assert scores.tolist() == pytest.approx(right.tolist(), abs=1e-5)
    sigmoid = str(draw(tmp_path / "sigmoid.onnx", WEIGHTS[:, 1:], end="Sigmoid"))
    refused(
        "its outputs for noise are in 0 to 1; give --scale probability, or --scale logit where",
        lambda: load_callable(sigmoid, 1),
    )
    scores = load_callable(sigmoid, 1, "probability").score(small)
    assert scores.tolist() == pytest.approx(expit(both_sums(small)[:, 1]).tolist(), abs=1e-5)
    logits = load_callable(str(draw(tmp_path / "logits.onnx")), 1, "probability")
    refused(
        "are no probabilities of a fake; return 0 to 1, or give --scale logit",
        lambda: logits.score(small),
    )


def test_three_outputs_are_one_line(tmp_path: Path) -> None:
    file = draw(tmp_path / "a.onnx", np.eye(3))
    refused(
        r"its output for 4 images is \(4, 3\); it must be \(N,\), \(N, 1\) or \(N, 2\) for N",
        lambda: load_callable(str(file), 1),
    )


# ---------------------------------------------------------------------------------------------
# Detectors of the pipeline and of others


def test_onnx_files_and_models_of_mlflow_can_be_called(
    pipeline: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(pipeline)
    monkeypatch.setenv("DVC_ROOT", str(pipeline))
    detector, config = load_detector(paths.MODEL)
    export_network(detector, config.preprocessing.image_size, tmp_path)
    file = tmp_path / "detector.onnx"
    call(monkeypatch, file, "--out", tmp_path / "onnx.csv", "--scale", "logit")
    registered = "models:/deepfake-detector-generated-sample/1"
    call(monkeypatch, registered, "--out", tmp_path / "mlflow.csv")
    logits, scores = pd.read_csv(tmp_path / "onnx.csv"), pd.read_csv(tmp_path / "mlflow.csv")
    assert logits["img_name"].tolist() == scores["img_name"].tolist()
    probabilities = scores["probability"].tolist()
    assert expit(logits["logit"]).tolist() == pytest.approx(probabilities, abs=0.02)


def test_the_published_xception_is_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = timm.create_model("legacy_xception", num_classes=2).eval()
    names = {name: f"backbone.{name.replace('fc.', 'last_linear.')}" for name in model.state_dict()}
    published = {names[name]: value for name, value in model.state_dict().items()}
    published["backbone.adjust_channel.0.weight"] = torch.zeros(512, 2048, 1, 1)
    torch.save(published, tmp_path / "xception_best.pth")
    monkeypatch.setenv("XCEPTION_WEIGHTS", str(tmp_path / "xception_best.pth"))
    photos = [np.full((60, 50, 3), level, dtype=np.uint8) for level in (0, 255)]
    scores = load_callable("tests.xception:score", 1).score(photos)
    with torch.inference_mode():
        inputs = torch.tensor([-1.0, 1.0])[:, None, None, None].expand(2, 3, 256, 256)
        right = model(inputs).softmax(dim=1)[:, 1]
    assert scores.tolist() == pytest.approx(right.tolist(), abs=1e-6)
    assert scores[0] != scores[1]


# ---------------------------------------------------------------------------------------------
# The command


def test_both_files_hold_all_scores_in_batches_of_the_given_size(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "tests.test_score:brightness_then_black"
    call(monkeypatch, name, "--out", "a.csv", "--perturbed", "p.csv", "--batch-size", 4)
    plain, perturbed = pd.read_csv("a.csv"), pd.read_csv("p.csv")
    assert max(sizes) == 4 and written(place) == {"a.csv", "p.csv"}
    right = [image(seed).mean() / 255 for seed in range(NUM_VAL + NUM_CALIBRATION)]
    assert plain["probability"].tolist() == pytest.approx(right)
    names = perturbed["img_name"].unique()
    assert len(perturbed) == NUM_PERTURBED * (1 + len(VARIANTS)) == sum(sizes) - len(plain)
    for index, name in enumerate(names):
        pixels = torch.from_numpy(image(int(name.removesuffix(".png")))).permute(2, 0, 1)
        right = [variant.double().mean().item() / 255 for variant in variants_of(pixels, index)]
        scores = perturbed["probability"][perturbed["img_name"] == name]
        assert scores.tolist() == pytest.approx(right)


def test_a_function_may_return_logits(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = ("--out", "a.csv", "--perturbed", "p.csv", "--scale", "logit")
    call(monkeypatch, "tests.test_score:logits", *options)
    right = [image(seed).mean() / 255 * 40 - 20 for seed in range(NUM_VAL + NUM_CALIBRATION)]
    assert pd.read_csv("a.csv")["logit"].tolist() == pytest.approx(right, abs=1e-4)
    assert "logit" in pd.read_csv("p.csv")


def test_logits_that_are_all_in_0_to_1_need_their_scale_and_are_doubted(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = draw(place / "weak.onnx", np.full((3, 1), 0.1))
    refused("weak.onnx: its outputs for noise", lambda: call(monkeypatch, file, "--out", "a.csv"))
    assert written(place) == {"weak.onnx"}
    told = "every score is in 0 to 1; where these are probabilities, give --scale probability"
    for scale in ("probability", "logit"):
        call(monkeypatch, file, "--out", "a.csv", "--scale", scale)
        assert list(pd.read_csv("a.csv")) == ["img_name", "set", scale]
        assert (told in capsys.readouterr().err) == (scale == "logit")


def test_scores_stay_where_perturbed_images_fail(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "tests.test_score:fails_after_all_images"
    refused(
        "failed on 16 images: ValueError: out of memory",
        lambda: call(monkeypatch, name, "--out", "a.csv", "--perturbed", "p.csv"),
    )
    assert written(place) == {"a.csv"} and len(pd.read_csv("a.csv")) == NUM_VAL + NUM_CALIBRATION


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--out", "a.csv", "--perturbed", "./a.csv"], "a.csv: is the file of --out; name another"),
        (["--out", "data"], "data: exists and is no plain file; name another file"),
        (["--out", "/dev/null"], "/dev/null: exists and is no plain file"),
        (["--out", "/proc/x"], "/proc: cannot be written"),
        (["--out", "gone/a.csv"], "gone/a.csv: its folder does not exist"),
        (["--out", "a.csv", "--perturbed", "data"], "data: exists and is no plain file"),
        (["--out", "a.csv", "--scale", "any"], "argument --scale: invalid choice: 'any'"),
    ],
)
def test_a_wrong_target_is_told_before_anything_is_loaded(
    place: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], words: str
) -> None:
    refused(words, lambda: call(monkeypatch, "no_module:score", *arguments))
    assert not written(place)


@pytest.mark.parametrize("number", [0, 1])
def test_without_images_to_perturb_nothing_is_loaded(
    place: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    set_params(place, {"predict.robustness_images": number})
    refused(
        f"params.yaml: predict.robustness_images = {number}: no images for --perturbed",
        lambda: call(monkeypatch, "no_module:score", "--out", "a.csv", "--perturbed", "p.csv"),
    )
    assert not written(place)


def test_help_is_no_failure_though_it_ends_the_program() -> None:
    done = run("python", "-m", "stages.tools.score", "--help", cwd=ROOT)
    assert done.stdout.startswith("usage: ") and not done.stderr

"""Weights: random, from a local file, from a hub; and a detector's way to disk and back."""

import hashlib
import inspect
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import save

from stages.lib.core.errors import UserError
from stages.lib.detector.model import (
    LOADS_WEIGHTS,
    Detector,
    DetectorConfig,
    check_input,
    create_model,
    fake_logit,
    input_size_args,
    load_detector,
    provenance,
    resolve_preprocessing,
    save_detector,
)
from stages.lib.detector.preprocessing import Preprocessing
from stages.lib.training.optimization import zero_head
from tests.conftest import ROOT, run

PREPROCESSING = Preprocessing(
    image_size=32, interpolation="bicubic", mean=[0.5, 0.4, 0.3], std=[0.2, 0.2, 0.3]
)
CONFIG = DetectorConfig(
    model="test_resnet",
    model_args={},
    preprocessing=PREPROCESSING,
    initial_weights="random",
    trained_in="portable fp32",
    num_parameters=1,
    best_epoch=1,
)


@pytest.fixture(scope="module")
def pretrained() -> dict[str, torch.Tensor]:
    """Weights of a test_resnet with ImageNet's 1,000 classes."""
    torch.manual_seed(7)
    return timm.create_model("test_resnet", num_classes=1000).state_dict()


@pytest.mark.parametrize("suffix", ["safetensors", "pth"])
def test_weights_come_from_a_local_file_and_the_head_is_new(
    tmp_path: Path, pretrained: dict[str, torch.Tensor], suffix: str
) -> None:
    path = tmp_path / f"weights.{suffix}"
    if suffix == "pth":
        torch.save(pretrained, path)
    else:
        path.write_bytes(save(pretrained))
    model = create_model("test_resnet", {}, str(path))
    state = model.state_dict()
    torch.testing.assert_close(state["conv1.0.weight"], pretrained["conv1.0.weight"])
    assert state["fc.weight"].shape[0] == 2


def test_weights_of_another_model_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "other.safetensors"
    path.write_bytes(save(timm.create_model("test_vit").state_dict()))
    with pytest.raises(
        UserError, match=r"other.safetensors. do not fit test_resnet: .* of .* tensors are missing"
    ):
        create_model("test_resnet", {}, str(path))


def test_a_file_that_holds_no_weights_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "junk.safetensors"
    path.write_bytes(b"not weights")
    with pytest.raises(UserError, match=r"junk.safetensors"):
        create_model("test_resnet", {}, str(path))


@pytest.fixture
def hub(pretrained: dict[str, torch.Tensor]) -> Iterator[str]:
    """A hub on loopback that has the weights of timm/test_resnet.r160_in1k."""
    content = save(pretrained)
    digest = hashlib.sha256(content).hexdigest()

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            found = self.path == "/timm/test_resnet.r160_in1k/resolve/main/model.safetensors"
            self.send_response(200 if found else 404)
            if found:
                self.send_header("X-Repo-Commit", "0" * 40)
                self.send_header("ETag", f'"{digest}"')
            self.send_header("Content-Length", str(len(content) if found else 0))
            self.end_headers()
            self.found = found

        def do_GET(self) -> None:
            self.do_HEAD()
            if self.found:
                self.wfile.write(content)

        def log_message(self, *_: object) -> None:  # pyrefly: ignore[bad-override]
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


CREATE = """
import sys
from stages.lib.running import run_command
from stages.lib.detector.model import create_model
def main():
    model = create_model(sys.argv[1], {}, "hub")
    print(float(model.state_dict()["conv1.0.weight"].sum()))
run_command(main)
"""


def test_pretrained_weights_come_from_the_hub(
    hub: str, tmp_path: Path, pretrained: dict[str, torch.Tensor]
) -> None:
    done = run(
        sys.executable,
        "-c",
        CREATE,
        "test_resnet",
        cwd=ROOT,
        HF_ENDPOINT=hub,
        HF_HOME=str(tmp_path),
    )
    assert float(done.stdout) == pytest.approx(float(pretrained["conv1.0.weight"].sum()))


def test_a_failed_download_stops_and_never_starts_from_scratch(hub: str, tmp_path: Path) -> None:
    done = run(
        sys.executable,
        "-c",
        CREATE,
        "test_vit",
        cwd=ROOT,
        check=False,
        HF_ENDPOINT=hub,
        HF_HOME=str(tmp_path),
    )
    assert (done.returncode, done.stdout) == (1, "")
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert "train.weights = 'hub': cannot load weights for test_vit" in errors[0]


def test_a_model_that_the_hub_has_no_weights_for_is_named() -> None:
    name = "botnet50ts_256"
    assert not timm.get_pretrained_cfg(name).has_weights
    with pytest.raises(UserError, match=f"train.weights = 'hub': cannot load weights for {name}"):
        create_model(name, {}, "hub")


@pytest.mark.parametrize(
    "model_args",
    [{"num_classes": 5}, {"act_layer": "nothing"}, {"no_such": 1}],
    ids=lambda model_args: next(iter(model_args)),
)
def test_arguments_that_a_model_refuses_are_one_line(model_args: dict[str, Any]) -> None:
    with pytest.raises(
        UserError, match="train.model_args = .*test_resnet does not accept"
    ) as found:
        create_model("test_resnet", model_args, "random")
    assert len(str(found.value)) < 300 and "\n" not in str(found.value)


@pytest.mark.parametrize(
    "argument",
    ["checkpoint_path", "pretrained_cfg_overlay", "pretrained_cfg", "pretrained", "cache_dir"],
)
@pytest.mark.parametrize("weights", ["random", "hub"])
def test_weights_come_from_train_weights_alone(
    tmp_path: Path, pretrained: dict[str, torch.Tensor], argument: str, weights: str
) -> None:
    path = tmp_path / "weights.pth"
    torch.save(pretrained, path)
    value = {"pretrained": True, "pretrained_cfg_overlay": {"file": str(path)}}
    value |= {"pretrained_cfg": {"file": str(path)}, "checkpoint_path": str(path)}
    model_args = {argument: value.get(argument, str(tmp_path))}
    with pytest.raises(UserError, match=f"train.model_args.{argument}: .* train.weights alone"):
        create_model("test_resnet", model_args, weights)


def test_every_argument_of_timm_that_loads_weights_is_refused() -> None:
    """A new version of timm may have more of them."""
    functions = (timm.create_model, timm.models.build_model_with_cfg)
    names = {name for one in functions for name in inspect.signature(one).parameters}
    known = {"model_name", "scriptable", "exportable", "no_jit", "kwargs", "model_cls", "variant",
             "model_cfg", "feature_cfg", "kwargs_filter"}  # fmt: skip
    assert names - known == set(LOADS_WEIGHTS)


def test_a_folder_is_no_model() -> None:
    with pytest.raises(UserError, match=r"train.model = 'local-dir:/x': .* train.weights"):
        create_model("local-dir:/x", {}, "hub")


@pytest.mark.parametrize(
    ("name", "model_args", "side", "words"),
    [
        ("vit_tiny_patch16_224", {}, 64, "train.image_size = 64: vit_tiny_patch16_224 cannot take"),
        ("test_resnet", {"in_chans": 4}, 64, "train.image_size = 64: test_resnet cannot take such"),
        ("test_resnet", {"drop_rate": "high"}, 64, "or not with these train.model_args: .*'high'"),
        ("test_resnet", {"num_classes": 5}, 64, "returns .* numbers for an image, not the two"),
    ],
    ids=["size", "channels", "training-alone", "no-classifier"],
)
def test_a_model_that_cannot_take_such_images_is_refused(
    name: str, model_args: dict[str, Any], side: int, words: str
) -> None:
    model = timm.create_model(name, **{"num_classes": 2} | model_args)
    with pytest.raises(UserError, match=words) as error:
        check_input(Detector(model, resolve_preprocessing(model, image_size=side)), name, side)
    assert len(str(error.value)) < 300 and "\n" not in str(error.value)


def test_the_trial_of_a_model_leaves_it_and_the_random_numbers_alone() -> None:
    model = timm.create_model("test_resnet", num_classes=2, drop_rate=0.5)
    detector = Detector(model, resolve_preprocessing(model, image_size=64))
    before = {name: tensor.clone() for name, tensor in detector.state_dict().items()}
    random_state = torch.get_rng_state()
    check_input(detector, "test_resnet", 64)
    assert torch.equal(torch.get_rng_state(), random_state)
    for name, tensor in detector.state_dict().items():
        assert torch.equal(tensor, before[name]), name


def test_a_head_begins_near_zero_where_there_is_one() -> None:
    images = torch.rand(4, 3, 64, 64)
    for name in ("test_resnet", "deit_tiny_distilled_patch16_224"):  # one head, and two
        sizes = {"img_size": 64} if "deit" in name else {}
        model = timm.create_model(name, num_classes=2, **sizes).eval()
        before = model(images).abs().max()
        zero_head(model)
        assert model(images).abs().max() < before / 20
    with pytest.raises(UserError, match="train.zero_head: .* no head with weights"):
        zero_head(timm.create_model("test_resnet", num_classes=0))


def test_preprocessing_is_the_models_own_unless_chosen() -> None:
    model = timm.create_model("test_resnet")
    own = resolve_preprocessing(model, image_size=64, interpolation=None, mean=None, std=None)
    assert own.mean == list(timm.data.resolve_model_data_config(model)["mean"])
    chosen = resolve_preprocessing(model, image_size=64, mean=[0.1, 0.2, 0.3], std=None)
    assert (chosen.mean, chosen.std) == ([0.1, 0.2, 0.3], own.std)


def test_a_transformer_of_fixed_size_is_built_for_the_image_size() -> None:
    args = input_size_args("test_vit", 96)
    assert args == {"img_size": 96}
    assert input_size_args("test_resnet", 96) == {}
    create_model("test_vit", args, "random")(torch.zeros(1, 3, 96, 96))


def test_a_saved_detector_comes_back_the_same(tmp_path: Path) -> None:
    model = create_model("test_resnet", {}, "random")
    save_detector(tmp_path, model.state_dict(), CONFIG)
    loaded, config = load_detector(tmp_path)
    images = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8)
    before = Detector(model, PREPROCESSING).eval()(images)
    assert torch.equal(loaded(images), before)
    digest = hashlib.sha256((tmp_path / "weights.safetensors").read_bytes()).hexdigest()
    known = CONFIG.model_copy(update={"weights_sha256": digest})
    assert config == known.model_copy(update={"config_sha256": known.digest()})


def test_the_same_detector_gives_the_same_bytes(tmp_path: Path) -> None:
    model = create_model("test_resnet", {}, "random")
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        save_detector(tmp_path / name, model.state_dict(), CONFIG)
    for file in ("weights.safetensors", "config.json"):
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes()


def test_a_folder_without_a_detector_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no weights.safetensors in it; train a model"):
        load_detector(tmp_path)


def test_the_fake_logit_is_the_log_odds_of_fake() -> None:
    outputs = torch.tensor([[0.0, 2.0], [1.0, -1.0]])
    expected = torch.softmax(outputs, 1)[:, 1]
    torch.testing.assert_close(torch.sigmoid(fake_logit(outputs)), expected)


def test_where_weights_are_from_is_told_by_tag_or_digest(tmp_path: Path) -> None:
    (tmp_path / "weights.pth").write_bytes(b"")
    assert provenance("resnet18", "random") == "random"
    assert provenance("resnet18", "hub") == "hub:a1_in1k"
    assert provenance("convnext_base.fb_in22k_ft_in1k", "hub") == "hub:fb_in22k_ft_in1k"
    empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    assert provenance("resnet18", str(tmp_path / "weights.pth")) == f"sha256:{empty}"

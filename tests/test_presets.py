"""Presets: what they set, what they keep, and that each one makes a detector that can train."""

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from dvc.utils.hydra import apply_overrides

from stages import predict, train
from stages.card import MOST_PARAMETERS, pretraining
from stages.chores.preset import PRESETS, listing, with_preset
from stages.lib.core.errors import UserError
from stages.lib.core.params import load_params, read_yaml
from stages.lib.core.tables import read_scores
from stages.lib.detector.model import count_parameters, create_model, input_size_args
from stages.lib.prediction.params import PredictParams
from stages.lib.training.batches import check_batch_size
from stages.lib.training.optimization import make_optimizer, set_trainable, zero_head
from stages.lib.training.params import TrainParams
from tests.conftest import ROOT, readme_commands, run, set_params

NAMES = sorted(path.stem for path in PRESETS.glob("*.yaml"))
TEXT = (ROOT / "params.yaml").read_text()


def leaves(values: dict[str, Any], path: str = "") -> dict[str, Any]:
    """Return dotted parameters with their values."""
    parameters: dict[str, Any] = {}
    for key, value in values.items():
        is_section = isinstance(value, dict) and key != "model_args"
        parameters |= leaves(value, f"{path}{key}.") if is_section else {f"{path}{key}": value}
    return parameters


def params_of(name: str, folder: Path) -> TrainParams:
    (folder / "params.yaml").write_text(with_preset(TEXT, name))
    return load_params("train", TrainParams, folder / "params.yaml")


def test_all_presets_set_the_same_parameters() -> None:
    """Else something of an earlier preset would stay."""
    keys = {name: set(leaves(read_yaml(PRESETS / f"{name}.yaml"))) for name in NAMES}
    assert all(names == keys["sample"] for names in keys.values())


def test_the_sample_is_what_params_yaml_has() -> None:
    assert with_preset(TEXT, "sample") == TEXT


@pytest.mark.parametrize("name", NAMES)
def test_a_preset_sets_its_values_and_keeps_the_rest(name: str, tmp_path: Path) -> None:
    params = params_of(name, tmp_path)
    load_params("predict", PredictParams, tmp_path / "params.yaml")
    check_batch_size(params, 10_000, world_size=1)
    before, after, wanted = (
        leaves(read_yaml(path))
        for path in (ROOT / "params.yaml", tmp_path / "params.yaml", PRESETS / f"{name}.yaml")
    )
    assert after == before | wanted
    comments = re.compile("# .*")
    assert comments.findall((tmp_path / "params.yaml").read_text()) == comments.findall(TEXT)
    # And back again: a long value may have moved a comment.
    back = with_preset((tmp_path / "params.yaml").read_text(), "sample")
    assert re.sub(" +#", " #", back) == re.sub(" +#", " #", TEXT)


def test_a_preset_can_follow_an_experiment_that_has_rewritten_params_yaml(tmp_path: Path) -> None:
    """`dvc exp run -S` writes lists over several lines, and nothing for null."""
    path = tmp_path / "params.yaml"
    path.write_text(TEXT)
    apply_overrides(path, ["train.lr=0.1"])
    rewritten = path.read_text()
    assert "- plain" in rewritten
    before = leaves(read_yaml(path))
    for name in NAMES:
        path.write_text(with_preset(rewritten, name))
        assert leaves(read_yaml(path)) == before | leaves(read_yaml(PRESETS / f"{name}.yaml"))


@pytest.mark.parametrize("name", NAMES)
def test_a_preset_makes_a_detector_that_can_train(name: str, tmp_path: Path) -> None:
    """On the meta device, which computes shapes alone: the large ones need no memory and no time.

    What a preset needs of timm is all in it: the name, the input size, the head, norms, layers.
    """
    params = params_of(name, tmp_path)
    with torch.device("meta"):
        args = input_size_args(params.model, params.image_size) | params.model_args
        model = create_model(params.model, args, "random")
        if params.zero_head:
            zero_head(model)
        set_trainable(model, params.trainable)
        make_optimizer(params, model)
        images = torch.zeros(4, 3, params.image_size, params.image_size)
        assert model(images).shape == (4, 2)
    learning = sum(one.numel() for one in model.parameters() if one.requires_grad)
    share = learning / count_parameters(model)
    assert 0 < share < 0.01 if params.trainable == "norms" else share == 1


def test_strong_keeps_to_the_rules_of_the_competition(tmp_path: Path) -> None:
    params = params_of("strong", tmp_path)
    config = timm.get_pretrained_cfg(params.model)
    assert config
    assert pretraining(f"hub:{config.tag}")[0] == "yes"
    with torch.device("meta"):
        assert count_parameters(create_model(params.model, {}, "random")) < MOST_PARAMETERS


def test_mistakes_are_one_line_and_change_nothing(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="'storng' is not a preset; did you mean strong"):
        with_preset(TEXT, "storng")
    with pytest.raises(UserError, match=r"train\.augmentation\.jpeg is missing"):
        with_preset(re.sub("    jpeg: .*\n", "", TEXT), "fast")
    (tmp_path / "params.yaml").write_text(TEXT + "train: {}\n")
    shutil.copytree(ROOT / "stages", tmp_path / "stages")
    done = run("python", "-m", "stages.chores.preset", "fast", cwd=tmp_path, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (1, 1)
    assert "the key 'train' is there twice" in done.stderr
    assert (tmp_path / "params.yaml").read_text() == TEXT + "train: {}\n"


def test_the_readme_shows_how(tmp_path: Path) -> None:
    """`make preset`, in a folder that has an environment already."""
    command = next(one for one in readme_commands("make preset") if "preset" in one)
    shutil.copy(ROOT / "Makefile", tmp_path)
    shutil.copy(ROOT / "params.yaml", tmp_path)
    shutil.copytree(ROOT / "stages", tmp_path / "stages")
    (tmp_path / ".venv/bin").mkdir(parents=True)
    for file in ("requirements.txt", ".venv/bin/python", ".venv/installed"):
        (tmp_path / file).touch()
    done = run("bash", "-c", command.split("#")[0], cwd=tmp_path)
    name = re.findall(r"NAME=(\w+)", command)[0]
    assert "+  image_size: " in done.stdout
    assert (tmp_path / "params.yaml").read_text() == with_preset(TEXT, name)
    assert f"{name} " in listing()


SMALLER = {"strong": 64, "open": 56}  # pixels: this is about the recipe, not about the network


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_preset_trains_and_scores(
    name: str, workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights at random, because the hub is not there, and few images at a time."""
    monkeypatch.chdir(workspace)
    monkeypatch.setenv("TRACKING", "off")
    root = read_yaml(Path("params.yaml"))["data"]["root"]
    params = params_of(name, workspace)
    set_params(
        workspace,
        {
            "data.root": root,
            "train.weights": "random",
            "train.epochs": 1,
            "train.batch_size": 16,
            "train.image_size": SMALLER.get(name, params.image_size),
            "predict.robustness_images": 0,
        },
    )
    train.main()
    predict.main()
    assert len(read_scores(Path("data/scores/val.csv"))) > 0

"""params.yaml is read as DVC reads it, and every mistake in it is one clear line."""

from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pytest
import yaml
from dvc.utils.serialize import parse_yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import Field, ValidationError

from stages.lib.core.errors import UserError
from stages.lib.core.params import StageParams, load_params, read_yaml
from tests.conftest import EXAMPLES, ROOT
from tests.test_design import loaded_params


class Params(StageParams):
    lr: Annotated[float, Field(gt=0)]
    epochs: Annotated[int, Field(ge=1)]
    name: str


def write(folder: Path, text: str) -> Path:
    path = folder / "params.yaml"
    path.write_text(text)
    return path


def load(folder: Path, **changes: Any) -> Params:
    content = {"lr": "5e-5", "epochs": "3", "name": "a"} | changes
    lines = [f"  {name}: {value}" for name, value in content.items() if value is not None]
    return load_params("train", Params, write(folder, "\n".join(["train:", *lines]) + "\n"))


@pytest.mark.parametrize(
    "scalar",
    [
        "5e-5",
        "1e3",
        "-2.5E+7",
        ".5",
        "1.",
        "010",
        "0o17",
        "0x1F",
        "-3",
        "+4",
        "on",
        "yes",
        "No",
        "~",
        "null",
        "",
        "true",
        "False",
        "'5e-5'",
        '"true"',
        "a b",
        "1.2.3",
        "e5",
        "1e",
        "[1, 2e-3]",
        "{a: 1e-3}",
        ".inf",
        "12abc",
        "0.1",
    ],
)
def test_a_scalar_is_what_dvc_takes_it_for(tmp_path: Path, scalar: str) -> None:
    text = f"key: {scalar}\n"
    ours = read_yaml(write(tmp_path, text))["key"]
    theirs = parse_yaml(text, "params.yaml")["key"]
    assert (ours, type(ours)) == (theirs, type(theirs))


def test_a_number_without_a_point_is_read_as_dvc_does(tmp_path: Path) -> None:
    assert load(tmp_path).lr == 5e-5


def test_parameters_are_frozen(tmp_path: Path) -> None:
    with pytest.raises(ValidationError):
        load(tmp_path).lr = 1.0  # pyrefly: ignore[read-only]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"learning_rate": 1}, "train.learning_rate is not a parameter"),
        ({"epoch": 1}, "train.epoch is not a parameter; did you mean epochs?"),
        ({"lr": None}, "train.lr is missing"),
        ({"lr": "fast"}, "train.lr = 'fast': input should be a valid number"),
        ({"lr": "0.0"}, "train.lr = 0.0: input should be greater than 0"),
        ({"epochs": "2.5"}, "train.epochs = 2.5: input should be a valid integer"),
        ({"epochs": "true"}, "train.epochs = True: input should be a valid integer"),
        ({"epochs": "'3'"}, "train.epochs = '3': input should be a valid integer"),
        ({"name": "5"}, "train.name = 5: input should be a valid string"),
    ],
)
def test_a_wrong_parameter_is_named(tmp_path: Path, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError) as error:
        load(tmp_path, **changes)
    assert words in str(error.value)
    assert "\n" not in str(error.value)
    assert "params.yaml" in str(error.value)


@pytest.mark.parametrize(
    "name",
    [
        "sample.num_train",
        "sample.seed",
        "pack.num_threads",
        "prepare.seed",
        "train.seed",
        "train.num_threads",
        "train.num_workers",
        "train.num_processes",
        "predict.num_threads",
        "predict.num_workers",
        "explain.num_threads",
    ],
)
def test_a_number_that_no_machine_can_take_is_one_line(tmp_path: Path, name: str) -> None:
    section, key = name.split(".")
    model = loaded_params(section)[section]
    content = read_yaml(ROOT / "params.yaml")[section] | {key: 10**30}
    path = write(tmp_path, yaml.safe_dump({section: content}))
    with pytest.raises(UserError, match=f"{name} = 10+: input should be less than") as error:
        load_params(section, model, path)
    assert len(str(error.value)) < 300


def test_all_wrong_parameters_are_named_at_once(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"train.lr = 'x'.*train.epochs = 0"):
        load(tmp_path, lr="x", epochs=0)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("train:\n  lr: 1\n  lr: 2\n", r"params.yaml:3: the key 'lr' is there twice"),
        ("train: [1\n", r"params.yaml:2: not valid YAML"),
        ("- a\n", r"expected sections"),
        ("evaluate: {}\n", r"the section 'train' is missing"),
        ("train: 5\n", r"train = 5: input should be a valid dictionary"),
    ],
)
def test_a_malformed_file_is_one_clear_line(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(UserError, match=words) as error:
        load_params("train", Params, write(tmp_path, text))
    assert "\n" not in str(error.value)


def test_a_missing_file_says_where_to_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="run from the root of the repository"):
        read_yaml(tmp_path / "params.yaml")


def test_few_aliases_are_read(tmp_path: Path) -> None:
    text = "more: &a {lr: 5e-5, epochs: 3}\ntrain: {<<: *a, name: a}\n"
    assert load_params("train", Params, write(tmp_path, text)).lr == 5e-5


def bomb(line: bytes) -> bytes:
    """Return YAML in which each line repeats the one before nine times, by aliases."""
    lines = [b"k%d: " % n + line % (n, *[n - 1] * 9) for n in range(1, 30)]
    return b"\n".join([b"k0: &0 {lr: 1}", *lines, b"train: *29\n"])


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"train:\n  name: caf\xe9\n", r"params.yaml:2: not UTF-8"),
        (
            b"train:\n  lr: 1\n  name: a\x07b\n",
            r"params.yaml:3: not valid YAML: a control character",
        ),
        (b"train: {lr: !!int foo}\n", r"not valid YAML: invalid literal"),
        (b"train: {lr: !!bool foo}\n", r"not valid YAML: 'foo' is not of the type that its tag"),
        (b"train: {lr: !!float ''}\n", r"is not of the type that its tag"),
        (
            b"train: {lr: 1, epochs: 1, name: a, ? [a] : b}\n",
            r"train.\('a',\) .*: keys should be strings",
        ),
        (b"train: {lr: 1" + b"0" * 5000 + b"}\n", r"not valid YAML: Exceeds the limit"),
        (b"train: " + b"[" * 3000 + b"\n", r"too many nested brackets"),
        (b"train: {lr: .inf, epochs: 1, name: a}\n", r"train.lr = inf: input should be a finite"),
        (b"train: {lr: .nan, epochs: 1, name: a}\n", r"train.lr = nan: input should be a finite"),
        (b"train: {lr: 1, epochs: 1, name: " + b"[1]" * 500 + b"}\n", r"not valid YAML"),
        (b"train: {" + b", ".join(b"key%d: 1" % i for i in range(99)) + b"}\n", r"and \d+ more$"),
        (b"train: &a {lr: *a}\n", r"an alias in itself"),
        (bomb(b"&%d [" + b",".join([b"*%d"] * 9) + b"]"), "aliases .* make it too large"),
        (bomb(b"&%d {<<: [" + b",".join([b"*%d"] * 9) + b"]}"), "aliases .* make it too large"),
        (b"a: &a " + b"x" * 99999 + b"\ntrain: [" + b"*a," * 99 + b"]\n", "make it too large"),
    ],
)
def test_odd_bytes_are_one_short_line(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "params.yaml"
    path.write_bytes(content)
    with pytest.raises(UserError, match=words) as error:
        load_params("train", Params, path)
    message = str(error.value).replace(str(path), "params.yaml")
    assert "\n" not in message
    assert len(message) < 300


GOOD = b"train:\n  lr: 5e-5   # the rate\n  epochs: 3\n  name: 'a'\nother: {a: [1, 2], b: ~}\n"
MARKS = b"\n\t :-[]{}#&*!|>'\"%@`,?0123456789.e~\\\x00\x07\xc3\xe9"
CHANGES = st.tuples(st.integers(0, len(GOOD) - 1), st.sampled_from(MARKS), st.booleans())


@given(st.lists(CHANGES, min_size=1, max_size=5))
@settings(EXAMPLES)
def test_a_changed_file_is_read_right_or_is_one_short_line(
    tmp_path_factory: pytest.TempPathFactory, changes: list[tuple[int, int, bool]]
) -> None:
    content = bytearray(GOOD)
    for place, mark, replace in changes:
        content[place : place + replace] = bytes([mark])
    path = tmp_path_factory.getbasetemp() / "params.yaml"
    path.write_bytes(content)
    try:
        params = load_params("train", Params, path)
    except UserError as error:
        message = str(error).replace(str(path), "params.yaml")
        assert message.isprintable() and len(message) < 300
        return
    assert 0 < params.lr < np.inf
    theirs = parse_yaml(content.decode(), "params.yaml")["train"]
    assert params.model_dump() == theirs

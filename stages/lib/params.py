"""Reading params.yaml: the YAML that DVC reads, checked by one frozen model per stage."""

import re
from pathlib import Path
from typing import Annotated, Any, TypeVar

import pydantic
import yaml

from stages.lib.errors import UserError, did_you_mean

PARAMS_FILE = Path("params.yaml")
SAMPLE_ROOT = Path("data/raw/sample")  # where the embedded, generated data set lies


def _check_set_name(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z][\w-]*", name) or name in RESERVED_NAMES:
        raise ValueError(
            f"name the set by letters, digits, - and _, and not {', '.join(RESERVED_NAMES)}"
        )
    return name


# What metrics/evaluation.json and metrics/data.json hold beside the sets.
RESERVED_NAMES = ("train", "val", "calibration", "test", "pooled", "cross", "robustness",
                  "weights", "threshold", "temperature", "num_calibration")  # fmt: skip
SetName = Annotated[str, pydantic.AfterValidator(_check_set_name)]


class StageParams(pydantic.BaseModel):
    """Base of every stage's parameters: frozen, no unknown keys, no silent conversions."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid", strict=True)


class DataParams(StageParams):
    """Section `data`: where the images lie."""

    root: str
    evaluation_sets: dict[SetName, str]


ParamsT = TypeVar("ParamsT", bound=StageParams)


class _Yaml12Loader(yaml.SafeLoader):
    """PyYAML reading YAML 1.2 as DVC does: 5e-5 is a number, `on` a string, no key twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                line = key_node.start_mark.line + 1
                raise UserError(f"{PARAMS_FILE}:{line}: key '{key}' is there twice; remove one")
            seen.add(key)
        return super().construct_mapping(node, deep)


def _construct_int(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int:
    text = loader.construct_scalar(node)
    return int(text, 0) if "o" in text or "x" in text else int(text)  # 010 is ten in YAML 1.2


_Yaml12Loader.add_constructor("tag:yaml.org,2002:int", _construct_int)

# PyYAML guesses a scalar's type by regular expressions of YAML 1.1; replaced by those of 1.2.
_Yaml12Loader.yaml_implicit_resolvers = {}
for _tag, _pattern, _first in [
    ("bool", r"true|True|TRUE|false|False|FALSE", "tTfF"),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", "-+0123456789"),
    (
        "float",
        r"[-+]?(\.\d+|\d+(\.\d*)?)([eE][-+]?\d+)?|[-+]?\.(inf|Inf)|\.(nan|NaN)",
        "-+0123456789.",
    ),
    ("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]),
]:
    _Yaml12Loader.add_implicit_resolver(
        f"tag:yaml.org,2002:{_tag}", re.compile(rf"^(?:{_pattern})$"), list(_first)
    )


def read_yaml(path: Path) -> dict[str, Any]:
    """Parse a YAML 1.2 mapping; raises UserError where the file is missing or malformed."""
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), _Yaml12Loader)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; run from the repository's root") from None
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise UserError(f"{path}:{line}: not valid YAML: {error.problem}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected sections such as `train:`, got {type(content).__name__}")
    return content


def load_params(section: str, model: type[ParamsT], path: Path = PARAMS_FILE) -> ParamsT:
    """Return one section of params.yaml, checked; raises UserError naming each wrong key."""
    content = read_yaml(path)
    if section not in content:
        raise UserError(f"{path}: the section '{section}' is missing")
    try:
        return model.model_validate(content[section])
    except pydantic.ValidationError as error:
        problems = [_describe(problem, section, model) for problem in error.errors()]
        raise UserError(f"{path}: " + "; ".join(problems)) from None


def _describe(problem: Any, section: str, model: type[StageParams]) -> str:
    """Say one of pydantic's findings in the user's terms."""
    name = ".".join(str(part) for part in (section, *problem["loc"]))
    if problem["type"] == "extra_forbidden":
        hint = did_you_mean(str(problem["loc"][-1]), model.model_fields)
        return f"{name} is not a parameter{hint}"
    if problem["type"] == "missing":
        return f"{name} is missing"
    return f"{name} = {problem['input']!r}: {problem['msg'].lower()}"

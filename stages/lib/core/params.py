"""Reading params.yaml as DVC reads it, checked by one frozen model per stage."""

from collections.abc import Collection
from pathlib import Path
from typing import Any, TypeVar

import pydantic
from ruamel.yaml import YAML
from ruamel.yaml.constructor import DuplicateKeyError
from ruamel.yaml.error import MarkedYAMLError

from stages.lib import paths
from stages.lib.core.errors import UserError, did_you_mean


class StageParams(pydantic.BaseModel):
    """Base of the parameters of every stage: frozen, no unknown keys, no silent conversions."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid", strict=True)


def one_of(names: Collection[str]) -> pydantic.AfterValidator:
    """Return the check that a string is one of the names."""

    def check(name: str) -> str:
        if name not in names:
            raise ValueError(f"choose one of {', '.join(names)}")
        return name

    return pydantic.AfterValidator(check)


ParamsT = TypeVar("ParamsT", bound=StageParams)


def read_yaml(path: Path) -> dict[str, Any]:
    """Parse a YAML 1.2 mapping; raises UserError where the file is missing or malformed.

    PyYAML reads YAML 1.1, in which 5e-5 is a string, and keeps the last of two equal keys silently.
    """
    try:
        content = YAML(typ="safe", pure=True).load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; run from the root of the repository") from None
    except MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        if isinstance(error, DuplicateKeyError):
            key = str(error.problem).split('"')[1]
            raise UserError(f"{path}:{line}: the key '{key}' is there twice; remove one") from None
        raise UserError(f"{path}:{line}: not valid YAML: {error.problem}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected sections such as `train:`, got {type(content).__name__}")
    return content


def load_params(section: str, model: type[ParamsT], path: Path = paths.PARAMS) -> ParamsT:
    """Return one section of params.yaml, checked; raises UserError that names each wrong key."""
    content = read_yaml(path)
    if section not in content:
        raise UserError(f"{path}: the section '{section}' is missing")
    try:
        return model.model_validate(content[section])
    except pydantic.ValidationError as error:
        problems = [_describe(problem, section, model) for problem in error.errors()]
        raise UserError(f"{path}: " + "; ".join(problems)) from None


def _describe(problem: Any, section: str, model: type[StageParams]) -> str:
    """Say one of pydantic's findings in the terms of the user."""
    name = ".".join(str(part) for part in (section, *problem["loc"]))
    if problem["type"] == "extra_forbidden":
        hint = did_you_mean(str(problem["loc"][-1]), model.model_fields)
        return f"{name} is not a parameter{hint}"
    if problem["type"] == "missing":
        return f"{name} is missing"
    return f"{name} = {problem['input']!r}: {problem['msg'].lower()}"

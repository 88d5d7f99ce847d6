"""Reading params.yaml as DVC reads it, checked by one frozen model per stage."""

from collections.abc import Collection
from pathlib import Path
from typing import Annotated, Any, TypeVar

import pydantic
from ruamel.yaml import YAML
from ruamel.yaml.constructor import DuplicateKeyError
from ruamel.yaml.error import MarkedYAMLError, YAMLError
from ruamel.yaml.reader import ReaderError

from stages.lib import paths
from stages.lib.core.errors import UserError, did_you_mean, short

MOST_CHARACTERS = 1_000_000  # of a YAML file whose aliases are written out


class StageParams(pydantic.BaseModel):
    """Base of the parameters of every stage: frozen, no unknown keys, no silent conversions.

    A validator of a whole model raises ValueError with a message that begins with the name of one
    of its fields: "accumulate = 2: the reason; the remedy". The section is added to it.
    """

    model_config = pydantic.ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False
    )


def _check_order(limits: list[Any]) -> list[Any]:
    if limits[0] > limits[1]:
        raise ValueError("give the lowest number first")
    return limits


NumberT = TypeVar("NumberT")
Range = Annotated[  # the lowest and the highest number
    list[NumberT],
    pydantic.Field(min_length=2, max_length=2),
    pydantic.AfterValidator(_check_order),
]
Share = Annotated[float, pydantic.Field(ge=0, le=1)]  # of a whole, also as a probability
Seed = Annotated[int, pydantic.Field(ge=0, lt=2**32)]  # what NumPy and PyTorch both take
Threads = Annotated[int, pydantic.Field(ge=1, le=1024)]


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
    text = _read_text(path)
    try:
        yaml = YAML(typ="safe", pure=True)
        node = yaml.compose(text)
        if _size(node, {}) > MOST_CHARACTERS:
            raise UserError(f"{path}: aliases (`*`) make it too large; write the values out")
        content = yaml.constructor.construct_document(node) if node else None
    except DuplicateKeyError as error:
        key = short(str(error.problem).split('"')[1])
        raise UserError(
            f"{path}:{_line(error)}: the key '{key}' is there twice; remove one"
        ) from None
    except MarkedYAMLError as error:
        raise UserError(f"{path}:{_line(error)}: not valid YAML: {short(error.problem)}") from None
    except ReaderError as error:
        line = text[: error.position].count("\n") + 1
        raise UserError(f"{path}:{line}: not valid YAML: a control character") from None
    except RecursionError:
        raise UserError(
            f"{path}: not valid YAML: too many nested brackets, or an alias in itself"
        ) from None
    except TypeError:
        raise UserError(f"{path}: not valid YAML: a list or a mapping as a key") from None
    except LookupError as error:
        raise UserError(
            f"{path}: not valid YAML: {short(error)} is not of the type that its tag `!!` names"
        ) from None
    except (YAMLError, ValueError, OverflowError) as error:
        raise UserError(f"{path}: not valid YAML: {short(error)}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: expected sections such as `train:`, got {type(content).__name__}")
    return content


def _size(node: Any, sizes: dict[int, int]) -> int:
    """Return about how many characters a node has, with what aliases repeat counted each time.

    node: a scalar with a string, or a list of nodes, or of pairs of them. sizes: of the
    nodes so far, by their ids. Raises RecursionError for an alias in itself.
    """
    if isinstance(node, tuple):
        return sum(_size(part, sizes) for part in node)
    content = node.value if node else ""  # an empty file has no node
    if id(node) not in sizes:
        parts = content if isinstance(content, list) else []
        sizes[id(node)] = 1 + (sum(_size(part, sizes) for part in parts) or len(content))
    return sizes[id(node)]


def _read_text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; run from the root of the repository") from None
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise UserError(f"{path}:{line}: not UTF-8; save the file as UTF-8") from None


def _line(error: MarkedYAMLError) -> int:
    return error.problem_mark.line + 1 if error.problem_mark else 1


def load_params(section: str, model: type[ParamsT], path: Path = paths.PARAMS) -> ParamsT:
    """Return one section of params.yaml, checked; raises UserError that names each wrong key."""
    content = read_yaml(path)
    if section not in content:
        raise UserError(f"{path}: the section '{section}' is missing")
    try:
        return model.model_validate(content[section])
    except pydantic.ValidationError as error:
        problems = [_describe(problem, section, model) for problem in error.errors()]
        more = f"; and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise UserError(f"{path}: " + "; ".join(problems[:3]) + more) from None


def wanted_arithmetic() -> str:
    """Return train.arithmetic, without a word on mistakes, which the stage reports later."""
    try:
        return read_yaml(paths.PARAMS)["train"]["arithmetic"]
    except (UserError, KeyError, TypeError):
        return "portable"


def _describe(problem: Any, section: str, model: type[StageParams]) -> str:
    """Return one of pydantic's errors in the words of the user."""
    name = short(".".join(str(part) for part in (section, *problem["loc"])))
    if problem["type"] == "extra_forbidden":
        hint = did_you_mean(str(problem["loc"][-1]), model.model_fields)
        return f"{name} is not a parameter{hint}"
    if problem["type"] == "missing":
        return f"{name} is missing"
    if problem["type"] != "value_error":
        return f"{name} = {short(repr(problem['input']))}: {problem['msg'].lower()}"
    reason = problem["ctx"]["error"]  # the ValueError of a validator of ours
    if isinstance(problem["input"], dict):  # of a whole model, see StageParams
        return f"{name}.{reason}"
    return f"{name} = {short(repr(problem['input']))}: {reason}"

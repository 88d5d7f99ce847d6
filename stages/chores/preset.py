"""Write a preset into params.yaml, comments kept, and show what it changes.

Run: python -m stages.chores.preset NAME     (without a name: list the presets)

A preset is a file of stages/presets with the parameters that it sets. All presets set the same
ones, so nothing of an earlier preset stays. `data`, hardware and seeds are the user's own.
"""

import argparse
from difflib import unified_diff
from io import StringIO
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from stages.lib import paths
from stages.lib.core.errors import UserError, did_you_mean
from stages.lib.core.files import write_text
from stages.lib.core.params import read_yaml
from stages.lib.running import run_command

PRESETS = Path(__file__).parents[1] / "presets"
WHOLE = ("model_args",)  # mappings that are one value


def main() -> None:
    """Change params.yaml, or list the presets."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("name", nargs="?")
    name = parser.parse_args().name
    if not name:
        print(listing())
        return
    read_yaml(paths.PARAMS)  # its errors name the line
    before = paths.PARAMS.read_text(encoding="utf-8")
    after = with_preset(before, name)
    write_text(paths.PARAMS, after)
    lines = before.splitlines(keepends=True), after.splitlines(keepends=True)
    changes = "".join(unified_diff(*lines, "before", "after", n=0))
    print(changes or f"{paths.PARAMS} has all of '{name}' already")


def listing() -> str:
    """Return one line for each preset: its name and its first comment."""
    firsts = {path.stem: path.read_text(encoding="utf-8").split("\n")[0] for path in _files()}
    return "\n".join(f"{name:10s}{first.lstrip('# ')}" for name, first in firsts.items())


def with_preset(params: str, name: str) -> str:
    """Return the text of params.yaml with the values of a preset; all else stays as it is.

    Raises UserError for an unknown preset, and where params.yaml lacks a parameter.
    """
    names = [path.stem for path in _files()]
    if name not in names:
        raise UserError(
            f"'{name}' is not a preset{did_you_mean(name, names)}; there are {', '.join(names)}"
        )
    yaml = _yaml()
    content = yaml.load(params)
    _put(content, yaml.load(PRESETS / f"{name}.yaml"), "")
    text = StringIO()
    yaml.dump(content, text)
    return text.getvalue()


def _files() -> list[Path]:
    return sorted(PRESETS.glob("*.yaml"))


def _yaml() -> YAML:
    """Return a reader and writer that keeps comments, order and the form of numbers."""
    yaml = YAML()
    yaml.width = 1000  # never wrap a line
    yaml.preserve_quotes = True
    yaml.representer.add_representer(
        type(None), lambda representer, _: representer.represent_scalar(
            "tag:yaml.org,2002:null", "null")
    )  # fmt: skip
    return yaml


def _put(target: Any, values: Any, path: str) -> None:
    """Set the values in the mapping of params.yaml, level by level."""
    for key, value in values.items():
        if key not in target:
            raise UserError(f"{paths.PARAMS}: {path}{key} is missing; add it back from Git")
        if isinstance(value, dict) and key not in WHOLE:
            _put(target[key], value, f"{path}{key}.")
        else:
            target[key] = value


if __name__ == "__main__":
    run_command(main)

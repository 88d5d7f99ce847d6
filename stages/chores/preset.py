"""Write a preset into params.yaml, comments kept, and show what it changes.

Run: python -m stages.chores.preset NAME     (without a name: list the presets)

A preset is a file of stages/presets with the parameters that it sets. All presets set the same
parameters, so nothing of an earlier preset stays. No preset sets `data`, hardware or seeds.
"""

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
from stages.tools.command_line import parser_of

PRESETS = Path(__file__).parents[1] / "presets"
WHOLE = ("model_args",)  # mappings that are one value each


def main() -> None:
    """Change params.yaml, or list the presets."""
    parser = parser_of(__doc__, "stages.chores.preset")
    parser.add_argument("name", nargs="?", metavar="NAME")
    name = parser.parse_args().name
    if not name:
        print(listing())
        return
    read_yaml(paths.PARAMS)  # its errors name the line
    before = paths.PARAMS.read_text(encoding="utf-8")
    after = with_preset(before, name)
    write_text(paths.PARAMS, after)
    old_lines, new_lines = before.splitlines(keepends=True), after.splitlines(keepends=True)
    changes = "".join(unified_diff(old_lines, new_lines, "before", "after", n=0))
    print(changes or f"{paths.PARAMS} has all of '{name}' already")


def listing() -> str:
    """Return one line for each preset: its name and its first comment."""
    lines = []
    for path in _files():
        comment = path.read_text(encoding="utf-8").split("\n")[0]
        lines.append(f"{path.stem:10s}{comment.lstrip('# ')}")
    return "\n".join(lines)


def with_preset(params: str, name: str) -> str:
    """Return the text of params.yaml with the values of a preset; nothing else changes.

    Raises UserError for an unknown preset, and where a parameter is missing in params.yaml.
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

    def represent_none(representer: Any, _: None) -> Any:
        return representer.represent_scalar("tag:yaml.org,2002:null", "null")

    yaml = YAML()
    yaml.width = 1000  # never wrap a line
    yaml.preserve_quotes = True
    yaml.representer.add_representer(type(None), represent_none)
    return yaml


def _put(target: Any, values: Any, path: str) -> None:
    """Set the values in the mapping of params.yaml, level by level."""
    for key, value in values.items():
        if key not in target:
            raise UserError(f"{paths.PARAMS}: {path}{key} is missing; add it back from Git")
        if isinstance(value, dict) and key not in WHOLE:
            _put(target[key], value, f"{path}{key}.")
        elif isinstance(value, list) and isinstance(target[key], list):
            # In its form: `dvc exp run -S` writes lists over several lines, and ruamel.yaml would
            # lose the line break after a comment where such a list got another form.
            target[key][:] = value
        else:
            target[key] = value


if __name__ == "__main__":
    run_command(main)

"""The code that a served model runs: its source files, logged beside the weights."""

import ast
import re
from pathlib import Path

from stages.lib.core.files import write_text

ROOT = Path(__file__).parents[3]
MODEL_FILE, CODE = "model_file.py", "code/deepfake_detector_code"  # as MLflow lays them out


def served_files() -> list[Path]:
    """Return the source files of all modules that the served model imports."""
    return [ROOT / path for path in sorted(import_closure("stages.lib.publishing.served_model"))]


def write_served_code(folder: Path) -> Path:
    """Write the code of the served model into a folder; return the file that MLflow runs.

    Its imports become relative, because model_file.py gives the package a name of its own.
    """
    for file in served_files():
        inside = file.relative_to(ROOT / "stages")
        text = file.read_text(encoding="utf-8")
        dots = "." * len(inside.parts)
        text = re.sub(r"^(\s*from )stages(?:\.|(?= ))", rf"\1{dots}", text, flags=re.MULTILINE)
        write_text(folder / CODE / inside, text)
    text = Path(__file__).with_name(MODEL_FILE).read_text(encoding="utf-8")
    write_text(folder / MODEL_FILE, text)
    return folder / MODEL_FILE


def import_closure(module: str) -> set[str]:
    """Return the files of `stages` that a module imports, directly or not, relative to the root.

    It reads the sources, with imports inside functions, and adds the __init__.py of each package.
    """
    paths: set[str] = set()
    waiting = [module]
    while waiting:
        name = waiting.pop()
        path = _path_of(name)
        if path and path not in paths:
            paths.add(path)
            waiting += _imported_names(ROOT / path)
            if "." in name:
                waiting.append(name.rpartition(".")[0])
    return paths


def _path_of(module: str) -> str | None:
    base = module.replace(".", "/")
    for path in (f"{base}.py", f"{base}/__init__.py"):
        if (ROOT / path).is_file():
            return path
    return None


def _imported_names(path: Path) -> list[str]:
    """Return every name under `stages` that a file imports, at its top or inside a function."""
    names = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.append(node.module)
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return [name for name in names if name.startswith("stages.")]

"""Which modules of the project a module imports, directly or not, read from the sources."""

import ast
from pathlib import Path

ROOT = Path(__file__).parents[1]


def import_closure(module: str) -> set[str]:
    """Return the paths (relative to the root) of all modules of stages that `module` needs.

    Two files are left out, because nothing in them changes a result: stages/__init__.py calls what
    is in stages/lib/core, and stages/lib/paths.py has the paths of dvc.yaml.
    """
    found: set[str] = set()
    waiting = [module]
    while waiting:
        path = _path_of(waiting.pop())
        if path and path not in found:
            found.add(path)
            waiting += _imported_names(ROOT / path)
    return found - {"stages/__init__.py", "stages/lib/__init__.py", "stages/lib/paths.py"}


def _path_of(module: str) -> str | None:
    base = module.replace(".", "/")
    return next((p for p in (f"{base}.py", f"{base}/__init__.py") if (ROOT / p).is_file()), None)


def _imported_names(path: Path) -> list[str]:
    """Return every name under `stages` that a file imports, at its top or inside a function."""
    names = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.append(node.module)
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return [name for name in names if name.startswith("stages.")]

"""The file that MLflow runs to load a logged model, with the code that was logged beside it.

Python keeps one module per name, so the code is imported under a name that contains its digest.
Then one process can load models of different code, and a user may have a package `stages`, too.
"""

import sys
from hashlib import sha256
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

from mlflow.models import set_model
from mlflow.pyfunc import PythonModel


def load_served_model(folder: Path) -> PythonModel:
    """Return the served model of the code in a folder; the same code is imported once."""
    files = sorted(folder.rglob("*.py"))
    digest = sha256()
    for path in files:
        digest.update(
            f"{path.relative_to(folder)} {sha256(path.read_bytes()).hexdigest()}".encode()
        )
    name = f"deepfake_detector_{digest.hexdigest()[:16]}"
    if name not in sys.modules:
        spec = spec_from_file_location(name, folder / "__init__.py")
        if spec is None or spec.loader is None:
            raise ImportError(f"{folder}: no code of a served model")
        sys.modules[name] = module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return import_module(f"{name}.lib.publishing.served_model").ServedDetector()


if not __name__.startswith("stages."):  # MLflow gives it another name
    set_model(load_served_model(Path(__file__).parent / "code/deepfake_detector_code"))

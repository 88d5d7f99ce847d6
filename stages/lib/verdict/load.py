"""Loading an examiner: from a folder, or from MLflow's registry."""

from pathlib import Path

import torch

from stages.lib.core.errors import UserError, short
from stages.lib.detector.hardware import DeviceName, set_up_hardware
from stages.lib.tracking.mlflow_store import open_store, without_secrets
from stages.lib.verdict.examiner import Examiner


def load_examiner(
    model: str, device: DeviceName, num_threads: int, crop: bool, max_megapixels: float
) -> Examiner:
    """Return an examiner with the model in a folder, or with models:/NAME@ALIAS of MLflow.

    Scores are computed in fp32, so that a verdict can be repeated elsewhere. Raises UserError where
    the model or its rules are missing, damaged or do not belong together.
    """
    hardware = set_up_hardware(device, num_threads)
    torch.backends.cudnn.allow_tf32 = False  # keeps 10 bits of each number
    folder = _downloaded(model) if model.startswith("models:/") else Path(model)
    return Examiner(folder, hardware, crop, round(max_megapixels * 1e6))


def _downloaded(uri: str) -> Path:
    """Return the folder of a registered detector; a local store is read in place."""
    open_store()
    from mlflow.store.artifact.models_artifact_repo import ModelsArtifactRepository

    try:  # of the whole model, MLflow would write a file beside it, in the store
        files = Path(ModelsArtifactRepository(uri).download_artifacts("artifacts"))
    except Exception as error:  # whatever a store or a server raises
        raise UserError(
            f"--model {uri}: cannot be loaded: {short(without_secrets(str(error)), 200)}; "
            "`make ui` shows what is registered"
        ) from error
    weights = sorted(files.glob("*/weights.safetensors"))
    if not weights:
        raise UserError(f"--model {uri}: no detector of this pipeline; take one that it published")
    return weights[0].parent

"""The model registry of MLflow: each published model is a version, the best one is `champion`."""

from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import pandas as pd
from scipy.special import expit

from stages.lib.core.labels import CLASS_NAMES
from stages.lib.core.tables import read_scores
from stages.lib.evaluation.resampling import paired_improvement
from stages.lib.tracking.run import WEIGHTS_TAG

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

MODEL_NAME = "deepfake-detector"
ALIAS = "champion"
KEPT_TAGS = (WEIGHTS_TAG, "dvc_experiment", "git_commit")
SCORES_FILE = "scores/val.csv"  # among the artifacts of each run


def registered_name(is_generated_sample: bool) -> str:
    """Return the name of the model in the registry; a model of drawn faces has its own."""
    return f"{MODEL_NAME}-generated-sample" if is_generated_sample else MODEL_NAME


def register(
    client: "MlflowClient",
    model_id: str,
    name: str,
    scores: pd.DataFrame,
    metric: str,
    value: float,
) -> None:
    """Make a logged model a version of `name`, and champion where it beats the present one.

    scores: img_name, target, score and group of the validation images; value: that of `metric`. A
    model is better where the 95 % interval of its improvement in `metric`, on the same images, is
    above 0. The caller holds a lock, so that two models are compared one after the other.
    """
    version = _version_of(client, model_id, name)
    champion = _champion(client, name)
    if champion is None:
        wins, reason = True, "there was no champion"
    elif champion.version == version.version:
        wins, reason = True, "it was the champion before"
    elif champion.run_id == version.run_id:
        wins, reason = True, "it has the weights of the champion, and newer serving code"
    else:
        wins, reason = _compare(client, champion, scores, metric)
        client.set_model_version_tag(name, version.version, "against_champion", reason)
    client.set_model_version_tag(name, version.version, f"val.{metric}", f"{value:.6f}")
    if wins:
        client.set_registered_model_alias(name, ALIAS, version.version)
    verdict = "is" if wins else "does not become"
    print(f"registry: {name} version {version.version} {verdict} @{ALIAS}: {reason}", flush=True)


def _version_of(client: "MlflowClient", model_id: str, name: str) -> "ModelVersion":
    """Return the version of a logged model in the registry; it is made now where there is none."""
    from mlflow.exceptions import MlflowException

    run_id, source = client.get_logged_model(model_id).source_run_id, f"models:/{model_id}"
    for found in client.search_model_versions(f"name = '{name}' and run_id = '{run_id}'"):
        if found.source == source:
            return found
    run = client.get_run(run_id)
    tags = {key: run.data.tags[key] for key in KEPT_TAGS if key in run.data.tags}
    with suppress(MlflowException):  # it exists
        client.create_registered_model(name)
    return client.create_model_version(name, source, run_id, tags=tags, model_id=model_id)


def _champion(client: "MlflowClient", name: str) -> "ModelVersion | None":
    from mlflow.exceptions import MlflowException

    try:
        return client.get_model_version_by_alias(name, ALIAS)
    except MlflowException:  # what MLflow raises where no version has the alias
        return None


def _compare(
    client: "MlflowClient", champion: "ModelVersion", scores: pd.DataFrame, metric: str
) -> tuple[bool, str]:
    """Return whether the scores beat those of the champion, and by how much."""
    with TemporaryDirectory() as folder:
        path = client.download_artifacts(champion.run_id, SCORES_FILE, folder)
        theirs = read_scores(Path(path))
    rival = f"version {champion.version}"
    if theirs["img_name"].tolist() != scores["img_name"].tolist():
        return False, (
            f"{rival} was judged on other validation images; choose between them yourself and move "
            "the alias in the MLflow UI"
        )
    improvement = paired_improvement(
        metric,
        scores["target"].to_numpy(),
        scores["score"].to_numpy(),
        expit(theirs["logit"].to_numpy()),  # as labelled_scores makes ours, to the last digit
        scores["group"].to_numpy(),
    )
    counts = scores["target"].value_counts()
    of = ", ".join(f"{counts[target]} {name}" for target, name in enumerate(CLASS_NAMES))
    return improvement.low > 0, f"{metric} against {rival} {improvement}, 95 % interval, {of}"

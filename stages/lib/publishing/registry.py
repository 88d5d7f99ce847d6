"""The model registry of MLflow: each published model is a version, the best one is `champion`."""

from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import pandas as pd
from scipy.special import expit

from stages.lib.core.errors import UserError, short
from stages.lib.core.labels import CLASS_NAMES
from stages.lib.core.tables import read_scores
from stages.lib.evaluation.resampling import paired_improvement
from stages.lib.publishing.logged_model import is_logged
from stages.lib.tracking.run import CHANCE_TAG, WEIGHTS_TAG

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

MODEL_NAME = "deepfake-detector"
ALIAS = "champion"
KEPT_TAGS = (WEIGHTS_TAG, "dvc_experiment", "git_commit")
CHOOSE = "choose between them yourself and move the alias in the MLflow UI"
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
    better_than_chance: bool,
) -> None:
    """Make a logged model a version of `name`, and champion where it beats the present one.

    scores: img_name, target, score and group of the validation images; value: that of `metric`. A
    model is better where the 95 % interval of its improvement in `metric`, on the same images, is
    above 0. One that is no better than chance is never champion. The caller holds a lock, so that
    two models are compared one after the other.
    """
    version = _version_of(client, model_id, name)
    champion = _champion(client, name)
    same = champion is not None and champion.tags.get(WEIGHTS_TAG) == version.tags[WEIGHTS_TAG]
    if not better_than_chance:
        wins, reason = False, "it is no better than chance"
    elif champion is None:
        wins, reason = True, "there was no champion"
    elif champion.version == version.version:
        wins, reason = True, "it was the champion before"
    elif WEIGHTS_TAG not in champion.tags:
        wins, reason = False, f"version {champion.version} is not of this pipeline; {CHOOSE}"
    elif same:
        wins, reason = True, "it has the weights of the champion, and newer serving code"
    elif isinstance(theirs := _scores_of(client, champion), str):
        wins, reason = True, f"version {champion.version} was champion, and {theirs}"
    else:
        wins, reason = _compare(champion, theirs, scores, metric)
        client.set_model_version_tag(name, version.version, "against_champion", reason)
    useful = "yes" if better_than_chance else "no"
    client.set_model_version_tag(name, version.version, CHANCE_TAG, useful)
    client.set_model_version_tag(name, version.version, f"val.{metric}", f"{value:.6f}")
    verdict = "is" if wins else "does not become"
    if wins:
        client.set_registered_model_alias(name, ALIAS, version.version)
    elif same:
        client.delete_registered_model_alias(name, ALIAS)
        verdict = "is no longer"
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
    except MlflowException as error:  # where there is no such alias, or no such model
        if error.error_code not in ("INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST"):
            raise
        return None


def _scores_of(client: "MlflowClient", champion: "ModelVersion") -> pd.DataFrame | str:
    """Return the scores of the validation images of a champion, or why it counts as none.

    People and `mlflow gc` remove runs, models and files, and what is gone cannot be compared.
    """
    from mlflow.exceptions import MlflowException

    if not is_logged(client, champion.source.removeprefix("models:/")):
        return "its model is gone"
    try:
        run = client.get_run(champion.run_id)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return "its run is gone"
    if run.data.tags.get(CHANCE_TAG, "").startswith("no"):
        return "it is no better than chance"
    if SCORES_FILE not in [file.path for file in client.list_artifacts(run.info.run_id, "scores")]:
        return "its scores are gone"
    with TemporaryDirectory() as folder:
        path = client.download_artifacts(run.info.run_id, SCORES_FILE, folder)
        try:
            return read_scores(Path(path))
        except UserError as error:
            return f"its scores cannot be read: {short(error, 100)}"


def _compare(
    champion: "ModelVersion", theirs: pd.DataFrame, scores: pd.DataFrame, metric: str
) -> tuple[bool, str]:
    """Return whether the scores beat those of the champion, and by how much."""
    rival = f"version {champion.version}"
    if theirs["img_name"].tolist() != scores["img_name"].tolist():
        return False, f"{rival} was judged on other validation images; {CHOOSE}"
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

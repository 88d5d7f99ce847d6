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
from stages.lib.evaluation.intervals import paired_improvement
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
    """Make a logged model a version of `name`, and the champion where it beats the present one.

    scores: img_name, target, score and group of the validation images. value: of `metric` on them.
    A model is better where the 95 % interval of its improvement in `metric`, on the same images, is
    above 0. A model that is no better than chance is never the champion. The caller holds a lock,
    so that no two models are compared at once.
    """
    version = _version_of(client, model_id, name)
    champion = _champion(client, name)
    useful = "yes" if better_than_chance else "no"
    client.set_model_version_tag(name, version.version, CHANCE_TAG, useful)
    client.set_model_version_tag(name, version.version, f"val.{metric}", f"{value:.6f}")
    if not better_than_chance:
        wins, reason = False, "it is no better than chance"
    elif champion is None:
        wins, reason = True, "there was no champion"
    else:
        wins, reason = _challenge(client, version, champion, scores, metric)
    if wins:
        client.set_registered_model_alias(name, ALIAS, version.version)
        words = "is"
    elif champion is not None and _have_same_weights(champion, version):
        client.delete_registered_model_alias(name, ALIAS)
        words = "is no longer"
    else:
        words = "does not become"
    print(f"registry: {name} version {version.version} {words} @{ALIAS}: {reason}", flush=True)


def _challenge(
    client: "MlflowClient",
    version: "ModelVersion",
    champion: "ModelVersion",
    scores: pd.DataFrame,
    metric: str,
) -> tuple[bool, str]:
    """Return whether a version takes the place of the champion, or keeps it; and why."""
    rival = f"version {champion.version}"
    if champion.version == version.version:
        return True, "it was the champion before"
    if WEIGHTS_TAG not in champion.tags:
        return False, f"{rival} is not of this pipeline; {CHOOSE}"
    if _have_same_weights(champion, version):
        return True, "it has the weights of the champion, and newer serving code"
    try:
        rival_scores = _scores_of(client, champion)
    except NotComparable as error:
        return True, f"{rival} was champion, and {error}"
    wins, reason = _compare(rival, rival_scores, scores, metric)
    client.set_model_version_tag(version.name, version.version, "against_champion", reason)
    return wins, reason


def _have_same_weights(one: "ModelVersion", other: "ModelVersion") -> bool:
    return one.tags.get(WEIGHTS_TAG) == other.tags.get(WEIGHTS_TAG)


def _version_of(client: "MlflowClient", model_id: str, name: str) -> "ModelVersion":
    """Return the version of a logged model in the registry; make it where there is none."""
    from mlflow.exceptions import MlflowException

    run_id = client.get_logged_model(model_id).source_run_id
    source = f"models:/{model_id}"
    for version in client.search_model_versions(f"name = '{name}' and run_id = '{run_id}'"):
        if version.source == source:
            return version
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


class NotComparable(Exception):
    """Why a champion cannot be compared; it counts as none then."""


def _scores_of(client: "MlflowClient", champion: "ModelVersion") -> pd.DataFrame:
    """Return the scores of a champion for the validation images; raises NotComparable.

    People and `mlflow gc` remove runs, models and files.
    """
    from mlflow.exceptions import MlflowException

    if not is_logged(client, champion.source.removeprefix("models:/")):
        raise NotComparable("its model is gone")
    try:
        run = client.get_run(champion.run_id)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        raise NotComparable("its run is gone") from None
    if run.data.tags.get(CHANCE_TAG, "").startswith("no"):
        raise NotComparable("it is no better than chance")
    if SCORES_FILE not in [file.path for file in client.list_artifacts(run.info.run_id, "scores")]:
        raise NotComparable("its scores are gone")
    with TemporaryDirectory() as folder:
        path = client.download_artifacts(run.info.run_id, SCORES_FILE, folder)
        try:
            return read_scores(Path(path))
        except UserError as error:
            raise NotComparable(f"its scores cannot be read: {short(error, 100)}") from None


def _compare(
    rival: str, rival_scores: pd.DataFrame, scores: pd.DataFrame, metric: str
) -> tuple[bool, str]:
    """Return whether scores beat those of a rival, and by how much; rival: its name."""
    if rival_scores["img_name"].tolist() != scores["img_name"].tolist():
        return False, f"{rival} was evaluated on other validation images; {CHOOSE}"
    improvement = paired_improvement(
        metric,
        scores["target"].to_numpy(),
        scores["score"].to_numpy(),
        expit(rival_scores["logit"].to_numpy()),  # as labelled_scores makes ours, to the last digit
        scores["group"].to_numpy(),
    )
    counts = scores["target"].value_counts()
    sizes = ", ".join(f"{counts[target]} {name}" for target, name in enumerate(CLASS_NAMES))
    return improvement.low > 0, f"{metric} against {rival} {improvement}, 95 % interval, {sizes}"

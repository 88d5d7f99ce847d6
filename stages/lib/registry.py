"""MLflow's model registry: every evaluated model a version, the best one called `champion`."""

from contextlib import suppress
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import pandas as pd

from stages.lib.competition import CLASS_NAMES
from stages.lib.params import SAMPLE_ROOT, DataParams, load_params
from stages.lib.resampling import paired_improvement
from stages.lib.store import store_lock
from stages.lib.tracking import WEIGHTS_TAG

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities.model_registry import ModelVersion

MODEL_NAME = "deepfake-detector"
ALIAS = "champion"
KEPT_TAGS = (WEIGHTS_TAG, "dvc_experiment", "git_commit")
SCORES_FILE = "scores/val.csv"  # among the artifacts of each run


def registered_name() -> str:
    """Return the model's name in the registry; what learnt from drawn faces has one of its own."""
    drawn = load_params("data", DataParams).root == str(SAMPLE_ROOT)
    return f"{MODEL_NAME}-generated-sample" if drawn else MODEL_NAME


def register(
    client: "MlflowClient", run_id: str, scores: pd.DataFrame, metric: str, value: float
) -> None:
    """Make the run's model a version, and the champion where it is better than the one there is.

    scores: img_name, target, score and group of the validation images. "Better" means that the
    95 % interval of the improvement in `metric`, on the same images, lies above 0.
    """
    name = registered_name()
    with store_lock():  # two experiments that end together are compared one after the other
        version = _version_of(client, run_id, name)
        champion = _champion(client, name)
        if champion is None:
            wins, reason = True, "there was none"
        elif champion.version == version.version:
            wins, reason = True, "it was already"
        else:
            wins, reason = _compare(client, champion, scores, metric)
            client.set_model_version_tag(name, version.version, "against_champion", reason)
        client.set_model_version_tag(name, version.version, f"val.{metric}", f"{value:.6f}")
        if wins:
            client.set_registered_model_alias(name, ALIAS, version.version)
    verdict = "is" if wins else "does not become"
    print(f"registry: {name} version {version.version} {verdict} @{ALIAS}: {reason}", flush=True)


def _version_of(client: "MlflowClient", run_id: str, name: str) -> "ModelVersion":
    """Return the run's version in the registry, made now where there is none."""
    from mlflow.exceptions import MlflowException

    found = client.search_model_versions(f"name = '{name}' and run_id = '{run_id}'")
    if found:
        return found[0]
    run = client.get_run(run_id)
    tags = {key: run.data.tags[key] for key in KEPT_TAGS if key in run.data.tags}
    model_id = run.outputs.model_outputs[0].model_id
    with suppress(MlflowException):  # it is there already
        client.create_registered_model(name)
    return client.create_model_version(
        name, f"models:/{model_id}", run_id, tags=tags, model_id=model_id
    )


def _champion(client: "MlflowClient", name: str) -> "ModelVersion | None":
    from mlflow.exceptions import MlflowException

    try:
        return client.get_model_version_by_alias(name, ALIAS)
    except MlflowException:  # what MLflow raises where the alias is not set
        return None


def _compare(
    client: "MlflowClient", champion: "ModelVersion", scores: pd.DataFrame, metric: str
) -> tuple[bool, str]:
    """Return whether the scores beat the champion's, and by how much."""
    with TemporaryDirectory() as folder:
        path = client.download_artifacts(champion.run_id, SCORES_FILE, folder)
        theirs = pd.read_csv(path, dtype={"img_name": "str"})
    rival = f"version {champion.version}"
    if theirs["img_name"].tolist() != scores["img_name"].tolist():
        return False, (
            f"{rival} was judged on other validation images; choose between them yourself, by "
            f"moving the alias in the MLflow UI"
        )
    improvement = paired_improvement(
        metric,
        *(scores[column].to_numpy() for column in ("target", "score")),
        theirs["score"].to_numpy(),
        scores["group"].to_numpy(),
    )
    counts = scores["target"].value_counts()
    of = ", ".join(f"{counts[target]} {name}" for target, name in enumerate(CLASS_NAMES))
    return improvement.low > 0, f"{metric} against {rival} {improvement}, 95 % interval, {of}"

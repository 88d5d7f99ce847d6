"""Publish the results to MLflow: metrics, figures, pages, the served model and its registry.

params.yaml: publish, pack; data/{labels,model,scores,explanations,card,submission}, metrics
  ->  data/published.json (digests of the results), and all of it in the MLflow run of the model
Run: python -m stages.publish

The run is that of the training, found by the digest of the weights, or a new one where no run has
them. Publishing the same results twice writes the same values twice. data/published.json is
`persist` in dvc.yaml, so that DVC does not restore it from its run cache: this stage runs wherever
the results are new to a workspace.
"""

import shutil
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import pandas as pd

from stages.lib import paths
from stages.lib.core.digests import checked_tables
from stages.lib.core.errors import UserError
from stages.lib.core.files import read_json, sha256_of, write_json
from stages.lib.core.params import StageParams, load_params, one_of
from stages.lib.core.scores import read_evaluation
from stages.lib.core.tables import read_history, read_table, read_tables
from stages.lib.data.params import PackParams
from stages.lib.evaluation.metrics import METRICS
from stages.lib.evaluation.report import labelled_scores
from stages.lib.evaluation.tables import REALS_FOR_1E_4
from stages.lib.evaluation.verdict_rules import read_rules
from stages.lib.publishing.find_run import find_or_make_run, publishing_lock
from stages.lib.publishing.logged_model import log_served_model
from stages.lib.publishing.registry import register, registered_name
from stages.lib.report.figures import draw_all
from stages.lib.running import run_stage
from stages.lib.tracking.run import CHANCE_TAG, Tracker


class PublishParams(StageParams):
    """Section `publish`."""

    champion_metric: Annotated[str, one_of(METRICS)]


def main() -> None:
    """Publish everything, and write the digests of what was published."""
    params = load_params("publish", PublishParams)
    report = read_evaluation()
    if params.champion_metric not in report["val"]:
        raise UserError(
            f"publish.champion_metric = {params.champion_metric} needs {REALS_FOR_1E_4:,} "
            f"validation reals, not {report['val']['num_real']}; choose another metric"
        )
    files = files_to_publish()
    weights = read_json(paths.CONFIG, "weights_sha256")["weights_sha256"]
    read_rules(paths.VERDICT_RULES, weights)
    val = labelled_scores("val")
    with publishing_lock():
        tracker = find_or_make_run(weights, read_history())
        publish(tracker, report, val, files, params.champion_metric)
    digests = {str(path): sha256_of(path) for path in files}
    write_json(paths.PUBLISHED, {"weights": weights, "files": digests})


def files_to_publish() -> dict[Path, str | None]:
    """Return each file with its folder among the artifacts of the run, or None for the top folder.

    Raises UserError where a file is missing.
    """
    files: dict[Path, str | None] = {paths.EVALUATION: None, paths.DATA_REPORT: None}
    for table in checked_tables(paths.TABLES, "evaluate"):
        files[table] = None
    files[paths.SCORES / "val.csv"] = "scores"
    files[paths.CARD] = None
    files[paths.CARD_PAGE] = None
    for name in ("images.csv", "page.html"):
        files[paths.EXPLANATIONS / name] = "explanations"
    for sheet in sorted(paths.SHEETS.glob("*.png")):
        files[sheet] = "explanations"
    if len(read_table(paths.SUBMISSION)):
        files[paths.SUBMISSION] = None
    for path in files:
        if not path.is_file():
            raise UserError(f"{path}: no such file; run `dvc repro` to write it again")
    return files


def publish(
    tracker: Tracker,
    report: dict[str, Any],
    val: pd.DataFrame,
    files: dict[Path, str | None],
    metric: str,
) -> None:
    """Put everything into the run of the model, and register the model.

    report: metrics/evaluation.json. val: the labels of the validation images with their scores.
    """
    better_than_chance = bool(report["better_than_chance"])
    tracker.log_metrics(flatten(report))
    tracker.log_tags({CHANCE_TAG: "yes" if better_than_chance else "no, this model is useless"})
    for path, folder in files.items():
        tracker.log_file(path, folder)
    for name, figure in draw_all(read_tables(paths.PLOTS)).items():
        tracker.log_figure(figure, f"figures/{name}.png")
    name = registered_name(read_json(paths.DATA_REPORT, "generated_sample")["generated_sample"])
    value = report["val"][metric]

    def publish_model(client: Any, run_id: str) -> None:
        max_megapixels = load_params("pack", PackParams).max_megapixels
        with TemporaryDirectory() as folder:  # MLflow refuses links, which DVC may have made here
            model = shutil.copytree(paths.MODEL, Path(folder) / paths.MODEL.name)
            rules = Path(shutil.copy(paths.VERDICT_RULES, folder))
            model_id = log_served_model(client, run_id, model, rules, max_megapixels)
        register(client, model_id, name, val, metric, value, better_than_chance)

    tracker.attempt(publish_model)


def flatten(metrics: dict[str, Any], prefix: str = "") -> dict[str, float]:
    """Return nested numbers as {"val.auc": ...}, with the names of `dvc metrics show`."""
    flat: dict[str, float] = {}
    for name, value in metrics.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{name}.")
        elif not isinstance(value, str):
            flat[f"{prefix}{name}"] = value
    return flat


if __name__ == "__main__":
    run_stage(main)

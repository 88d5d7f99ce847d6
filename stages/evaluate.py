"""Turn scores into metrics and curves.

params.yaml: evaluate; data/scores, data/labels, data/model/{config.json, history.csv},
metrics/data.json
  ->  metrics/evaluation.json, metrics/tables/*.csv, metrics/plots/*.csv, data/verdict_rules.json
Run: python -m stages.evaluate

The thresholds, the temperature and the distance from which verdicts are unsure are chosen only on
the calibration set, which had no part in training or in choosing the epoch, and are the same for
every set. The epoch was chosen on val, whose metrics therefore flatter the model a little.
`held_out` is the reals of val and the fakes of prepare.hold_out_families, held_out_NAME one of
prepare.hold_out_sources. `pooled` is all labelled images together. trained_sources has the images
of each source in val and calibration.
metrics/README.md explains the tables.
"""

from typing import Any

import pandas as pd

from stages.lib import paths
from stages.lib.core.digests import write_folder_digests
from stages.lib.core.files import atomic_folder, read_json, write_text
from stages.lib.core.params import load_params
from stages.lib.core.tables import read_history, write_table
from stages.lib.evaluation.curves import make_curves, severities
from stages.lib.evaluation.false_alarms import add_false_alarms, edited_scores
from stages.lib.evaluation.report import (
    SIGNIFICANT_DIGITS,
    EvaluateParams,
    add_robustness,
    evaluate_detector,
    labelled_scores,
    labelled_sets,
    perturbed_scores,
    summary,
    trained_sources,
    write_report,
    write_tables,
)
from stages.lib.evaluation.risk_coverage import risk_coverage_curves, risks_of
from stages.lib.evaluation.verdict_rules import Rules, doubt_of
from stages.lib.evaluation.verdicts import (
    choose_thresholds,
    farthest_allowed,
    summarise_verdicts,
    verdict_table,
    with_verdicts,
)
from stages.lib.evaluation.video_verdicts import choose_video_rules, videos_of
from stages.lib.running import run_stage

WEIGHTS_DIGITS = 12  # of the SHA-256 of the weights, which lead from DVC's tables to the MLflow run


def main() -> None:
    """Write metrics/, except what prepare and card write."""
    params = load_params("evaluate", EvaluateParams)
    config = read_json(paths.CONFIG, "weights_sha256", "trained_on")
    sets, calibration = labelled_sets(), labelled_scores("calibration")
    report: dict[str, Any] = {"weights": config["weights_sha256"][:WEIGHTS_DIGITS]}
    if sources := trained_sources(sets["val"], calibration):
        report["trained_sources"] = sources
    metrics, tables = evaluate_detector(sets, calibration, params)
    report |= metrics
    rules = make_rules(config, calibration, report, params)
    middle = rules.thresholds.middle
    decided = {name: with_verdicts(table, rules) for name, table in sets.items()}
    videos = {
        name: with_verdicts(videos_of(table), rules.for_videos())
        for name, table in sets.items()
        if table["video"].notna().any()
    }
    tables["verdicts"] = verdict_table(
        decided, videos, rules, params.size_bands, params.quality_bands
    )
    report["verdicts"] = summarise_verdicts(tables["verdicts"])
    add_robustness(report, tables, perturbed_scores(sets["val"]))
    fake_from = rules.thresholds.fake_from
    add_false_alarms(report, tables, edited_scores(sets["val"]), fake_from)
    curves = make_curves(sets["val"], report["threshold"])
    curves["risk_coverage"] = risk_coverage_curves(
        {name: risks_of(table, middle) for name, table in decided.items()}
    )
    curves["history"] = read_history()
    if "robustness" in report:
        curves["robustness"] = severities(tables["robustness"])
    with atomic_folder(paths.PLOTS) as folder:
        for name, curve in curves.items():
            write_table(curve.round(SIGNIFICANT_DIGITS), folder / f"{name}.csv")
        write_folder_digests(folder)
    with atomic_folder(paths.TABLES) as folder:
        write_tables(tables, folder)
        write_folder_digests(folder)
    write_text(paths.VERDICT_RULES, rules.as_json())
    write_report(report, paths.EVALUATION)
    print(*summary(report, tables), sep="\n")


def make_rules(
    config: dict[str, Any],
    calibration: pd.DataFrame,
    report: dict[str, Any],
    params: EvaluateParams,
) -> Rules:
    """Return the rules by which a score becomes a verdict; config: that of the detector."""
    return Rules(
        weights_sha256=config["weights_sha256"],
        views=read_json(paths.SCORED_VIEWS, "views")["views"],
        thresholds=choose_thresholds(
            calibration, params.verdicts, report["threshold"], report["temperature"]
        ),
        stability=bool(calibration["low"].notna().all()),
        farthest=farthest_allowed(calibration["distance"]),
        trained_on=config["trained_on"],
        doubt=doubt_of(
            read_json(paths.DATA_REPORT, "generated_sample")["generated_sample"],
            bool(report["better_than_chance"]),
        ),
        videos=choose_video_rules(calibration, params.verdicts, params.threshold),
    )


if __name__ == "__main__":
    run_stage(main)

"""Turn scores into metrics and curves.

params.yaml: evaluate; data/scores, data/labels, data/model/{config.json, history.csv},
metrics/data.json
  ->  metrics/evaluation.json, metrics/tables/*.csv, metrics/plots/*.csv, data/verdict_rules.json
Run: python -m stages.evaluate

The thresholds and the temperature are chosen on the calibration split alone, which had no part in
training or in choosing the epoch, and are the same for every set. The epoch was chosen on val,
whose metrics therefore flatter the model a little. `held_out` is the reals of val and the fakes of
prepare.hold_out_families. `pooled` is all labelled images together.
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
from stages.lib.evaluation.judging import (
    SIGNIFICANT_DIGITS,
    EvaluateParams,
    add_robustness,
    judge,
    summary,
    write_report,
    write_tables,
)
from stages.lib.evaluation.scored_sets import labelled_scores, labelled_sets, perturbed_scores
from stages.lib.evaluation.verdict_rules import Rules, doubt_of
from stages.lib.evaluation.verdicts import (
    SHARES,
    VERDICT_COLUMNS,
    choose_thresholds,
    verdict_rows,
)
from stages.lib.running import run_stage

WEIGHTS_DIGITS = 12  # of the SHA-256 of the weights, which lead from DVC's tables to the MLflow run


def main() -> None:
    """Write metrics/, except what prepare and card write."""
    params = load_params("evaluate", EvaluateParams)
    sets = labelled_sets()
    calibration = labelled_scores("calibration")
    judged, tables = judge(sets, calibration, params)
    config = read_json(paths.CONFIG, "weights_sha256", "trained_on")
    report = {"weights": config["weights_sha256"][:WEIGHTS_DIGITS]} | judged
    rules = make_rules(config, calibration, report, params)
    tables["verdicts"] = verdict_table(sets, rules, params)
    report["verdicts"] = summarise_verdicts(tables["verdicts"])
    curves = make_curves(sets["val"], report["threshold"])
    curves["history"] = read_history()
    add_robustness(report, tables, perturbed_scores(sets["val"]))
    if len(tables["robustness"]):
        curves["robustness"] = severities(tables["robustness"])
    with atomic_folder(paths.PLOTS) as folder:
        for name, curve in curves.items():
            write_table(curve.round(SIGNIFICANT_DIGITS), folder / f"{name}.csv")
        write_folder_digests(folder)
    with atomic_folder(paths.TABLES) as folder:
        write_tables(tables, folder)
        write_folder_digests(folder)
    write_text(paths.VERDICT_RULES, rules.model_dump_json(indent=2) + "\n")
    write_report(report, paths.EVALUATION)
    _print_summary(report, tables["intervals"], tables["robustness"])


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
        trained_on=config["trained_on"],
        doubt=doubt_of(
            read_json(paths.DATA_REPORT, "generated_sample")["generated_sample"],
            bool(report["better_than_chance"]),
        ),
    )


def verdict_table(
    sets: dict[str, pd.DataFrame], rules: Rules, params: EvaluateParams
) -> pd.DataFrame:
    """Return one row per set and slice: shares of unsure and of wrong verdicts, and reasons."""
    rows = [
        {"set": name} | row
        for name, table in sets.items()
        for row in verdict_rows(table, rules, params.size_bands, params.quality_bands)
    ]
    return pd.DataFrame(rows, columns=VERDICT_COLUMNS)


def summarise_verdicts(table: pd.DataFrame) -> dict[str, dict[str, float]]:
    """Return the shares of each set."""
    whole = table[table["slice"] == "all"].set_index("set")
    shares = whole[list(SHARES)]
    return {str(name): row.dropna().to_dict() for name, row in shares.iterrows()}


def _print_summary(
    report: dict[str, Any], intervals: pd.DataFrame, robustness: pd.DataFrame
) -> None:
    print(*summary(report, intervals), sep="\n")
    if len(robustness):
        found, worst = report["robustness"], robustness.loc[robustness["auc"].idxmin()]
        ends = [f"{found[name]:.4f}" for name in ("mean_auc_low", "mean_auc_high") if name in found]
        print(f"perturbed: mean AUC {found['mean_auc']:.4f} [{', '.join(ends) or 'not known'}], "
              f"{found['plain_auc']:.4f} unperturbed, "
              f"worst {worst.auc:.4f} at {worst.perturbation} {worst.level:g}, "
              f"{worst.num_real} real, {worst.num_fake} fake")  # fmt: skip


if __name__ == "__main__":
    run_stage(main)

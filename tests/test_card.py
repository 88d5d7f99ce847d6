"""The model card says what the files say, and nothing else."""

import json
import re
from html import escape
from pathlib import Path

import pandas as pd
import pytest

from stages.card import as_html, pretraining, render, rules_of
from stages.lib.evaluation.intervals import Interval
from stages.lib.evaluation.tables import CROSS_COLUMNS
from stages.lib.report.card import RESULTS, figures_of, fill, limits_of, plain_markdown
from stages.lib.score_files.comparison import Comparison

CONFIG = {
    "model": "resnet18",
    "preprocessing": {"image_size": 64, "reencode": None},
    "num_parameters": 200_000_000,
    "initial_weights": "random",
    "trained_in": "portable fp32",
    "expert": None,
    "best_epoch": 1,
}


def test_the_card_has_the_figures_of_the_pipeline(pipeline: Path) -> None:
    card = (pipeline / "metrics/model_card.md").read_text()
    metrics = json.loads((pipeline / "metrics/evaluation.json").read_text())
    intervals = pd.read_csv(pipeline / "metrics/tables/intervals.csv")
    aucs = intervals[(intervals["slice"] == "all") & (intervals["metric"] == "auc")]
    for row in aucs.itertuples():
        assert f"{row.value:.4f} [{row.low:.4f}, {row.high:.4f}]" in card
    for name in ("val", "drawn", "pooled"):
        of_set = metrics[name]
        assert f"{name} ({of_set['num_real']} real, {of_set['num_fake']} fake)" in card
    assert metrics["weights"] in card and f"{metrics['threshold']:.4f}" in card
    points = pd.read_csv(pipeline / "metrics/tables/operating_points.csv")
    for row in points.itertuples():
        assert f"| {row.wanted_fpr:g} | {row.threshold:.4f} | {row.set} |" in card
    assert f"| val | {metrics['verdicts']['val']['unsure']:.4f} [" in card
    assert "Trained on the embedded generated sample" in card
    assert "for 0.01 those are too few" in card.lower()  # a dozen calibration reals
    assert re.findall(r"^## (.*)$", card, re.MULTILINE) == [
        "Data",
        "Results",
        "Slices",
        "Operating points",
        "Real, fake or unsure",
        "Across sets",
        "Robustness",
        "False alarms by harmless edits",
        "Limits",
        "The rules of the competition",
    ]


def test_the_html_card_is_whole_in_one_file(pipeline: Path) -> None:
    page = (pipeline / "data/card/model_card.html").read_text()
    card = (pipeline / "metrics/model_card.md").read_text()
    assert page.count("<table>") == card.count("\n| ---") == 10
    assert page.count('src="data:image/png;base64,') == 4
    assert "http" not in page


@pytest.mark.parametrize(
    ("initial_weights", "verdict"),
    [
        ("random", "yes"),
        ("hub:a1_in1k", "yes"),
        ("hub:sw_in1k", "yes"),
        ("hub:miil_in1k_448", "yes"),
        ("hub:fb_in22k_ft_in1k", "no"),
        ("hub:in21k_ft_in1k", "no"),
        ("hub:openai", "no"),
        ("hub:ns_jft_in1k", "no"),
        ("hub:mae", "not known"),
        ("sha256:0123abcd", "not known"),
    ],
)
def test_pretraining_is_judged_by_the_weights_tag(initial_weights: str, verdict: str) -> None:
    assert pretraining(initial_weights)[0] == verdict


@pytest.mark.parametrize(("count", "verdict"), [(200_000_000, "yes"), (200_000_001, "no")])
def test_parameters_are_counted_against_the_rule(count: int, verdict: str) -> None:
    rules = rules_of(CONFIG | {"num_parameters": count})
    assert rules[0] == ("at most 200 M parameters", verdict, f"{count:,}")
    shown = {"no": "**no**"}.get(verdict, verdict)
    assert f"| at most 200 M parameters | {shown} | {count:,} |" in card(num_parameters=count)


INTERVALS = pd.DataFrame(
    [("val", "all", metric, 0.8, 0.7, 0.9) for metric in RESULTS]
    + [("val", "family=swap", "auc", 0.7, 0.6, 0.8), ("val", "family=lips", "auc", 0.9, 0.8, 1)],
    columns=["set", "slice", "metric", "value", "low", "high"],
).assign(num_real=50, num_fake=60)
POINT = {"set": "val", "wanted_fpr": 0.01, "threshold": 0.8, "calibration_reals": 5000,
         "enough_reals": True, "tpr": 0.5, "tpr_low": 0.4, "tpr_high": 0.6, "fpr": 0.012,
         "fpr_low": 0.01, "fpr_high": 0.014, "false_alarms_per_million": 12000,
         "num_real": 9000, "num_fake": 100}  # fmt: skip
VERDICTS = {"set": "val", "slice": "all", "num_real": 50, "num_fake": 60, "unsure": 1.0,
            "unsure_low": 0.9, "unsure_high": 1.0, "wrong": 0.1, "wrong_low": 0.0,
            "wrong_high": 0.2, "sure_wrong": float("nan"), "sure_and_wrong": 0.0,
            "sure_and_wrong_low": 0.0, "sure_and_wrong_high": 0.1, "sure_and_wrong_before": 0.02,
            "aurc": 0.05}  # fmt: skip
REPORT = {"weights": "abc", "better_than_chance": 1, "threshold": 0.5, "temperature": 1.0,
          "num_calibration": 9, "val": {"num_real": 50, "num_fake": 60}}  # fmt: skip
DATA = {"generated_sample": False, "bad_images": {"count": 0}, "held_out": {},
        "shortcut_auc": 0.6, "sets": {},
        "duplicates": {"groups_across_sets": {"train/val": 2, "val/test": 0}}}  # fmt: skip


def tables_of(**tables: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Return the tables of one small set that was not perturbed, with other ones in their place."""
    return {
        "intervals": INTERVALS,
        "operating_points": pd.DataFrame([POINT]),
        "cross_auc": pd.DataFrame(columns=CROSS_COLUMNS),
        "robustness": pd.DataFrame(),
        "false_alarms": pd.DataFrame(),
        "verdicts": pd.DataFrame([VERDICTS]),
    } | tables


def card(tables: dict[str, pd.DataFrame] | None = None, **config: object) -> str:
    return render(CONFIG | config, REPORT, DATA, tables or tables_of())


def test_the_card_says_what_is_an_ensemble() -> None:
    assert "ensemble" not in card() and "| one model | yes |" in card()
    text = card(expert={"weight": 0.25, "best_epoch": 4, "averaged_epochs": 1})
    assert "resnet18 (timm), an ensemble of two, 200.0 M parameters" in text
    assert "epoch 1, of the expert epoch 4 |" in text
    assert "| one model | **no** | an ensemble of two networks, the expert at 0.25 |" in text


def test_the_card_shows_what_the_distance_brings() -> None:
    cells = "| none is sure | 0.0000 [0.0000, 0.1000] | 0.0200 | 0.0500 | 50, 60 |"
    assert cells in card()


def test_what_was_seen_in_training_is_the_first_limit() -> None:
    limits = card().split("## Limits")[1]
    told = "- 2 groups of val are in the training set too; the figures of val flatter the detector."
    assert limits.strip().startswith(told)


def test_videos_have_a_row_where_there_are_any() -> None:
    assert "| AUC of whole videos | 0.8000 [0.7000, 0.9000] |" in card()
    frames = INTERVALS.assign(set="web")
    frames = pd.concat([INTERVALS, frames[frames["metric"] != "video_auc"]])
    report = REPORT | {"web": REPORT["val"]}
    rows = dict(figures_of(report, tables_of(intervals=frames))["results"])
    assert rows["AUC of whole videos"][1] is None and rows["AUC"][1]["value"] == 0.8
    without = tables_of(intervals=INTERVALS[INTERVALS["metric"] != "video_auc"])
    assert "AUC of whole videos" not in dict(figures_of(REPORT, without)["results"])


def test_a_useless_model_is_called_useless_first() -> None:
    report = REPORT | {"better_than_chance": 0, "val": {"num_real": 5, "num_fake": 6, "auc": 0.5}}
    title, warning, *_ = render(CONFIG, report, DATA, tables_of()).split("\n\n")
    assert title.startswith("# Model card")
    assert warning.startswith("> **This model is useless: its AUC on val is 0.5000")
    assert "useless" not in card()


def test_what_was_not_measured_is_said() -> None:
    text = card()
    assert "train.reencode is off" in text
    assert "There is only one labelled set" in text
    assert "Not measured" in text
    assert "| 1.0000 [0.9000, 1.0000] | 0.1000 [0.0000, 0.2000] | none is sure | 0.0000" in text
    assert "where the data set says so) in two sets: train/val 2." in text


def test_limits_name_the_shortcut_and_the_weakest_spots() -> None:
    shortcuts = {
        "val": {"num_bytes": 0.92, "worst": "num_bytes"},
        "test": {"width": 0.55, "worst": "width"},
    }
    data = DATA | {"sets": {name: {"shortcuts": aucs} for name, aucs in shortcuts.items()}}
    perturbed = pd.DataFrame(
        [("jpeg", 10, 0.6, 0.5, 0.7), ("blur", 3, 0.55, 0.5, 0.6)],
        columns=["perturbation", "level", "auc", "low", "high"],
    )
    report = {"val": {}, "pooled": {"auc": 0.9}, "cross": {"worst_auc": 0.4}}
    limits = limits_of(report, data, tables_of(robustness=perturbed), is_own=True)
    text = "\n".join(limits)
    assert "In val, num_bytes alone tells real from fake with AUC 0.920" in text
    assert "width" not in text
    assert "lowest AUC is family=swap of val: 0.7000 [0.6000, 0.8000]." in text
    assert "lowest AUC is blur at level 3: 0.5500 [0.5000, 0.6000]." in text
    assert "the AUC falls to 0.4000; it is 0.9000 over all sets together." in text
    assert "Drawn faces" not in text and "is not known" not in text
    foreign = limits_of(report, data, tables_of(), is_own=False)
    assert foreign[0] == "Whether the detector was trained or chosen on these images is not known."
    assert not [limit for limit in foreign if "training set" in limit or "epoch" in limit]


def test_false_alarms_are_counted_per_million() -> None:
    text = card()
    assert "| 12,000 [10,000, 14,000] |" in text
    assert "too few**" not in text
    few = tables_of(operating_points=pd.DataFrame([POINT | {"enough_reals": False}]))
    assert "**For 0.01 those are too few**" in card(few)


def test_sets_are_crossed_in_a_square() -> None:
    rows = [(a, b, 0.5, 0.4, 0.6, 9, 9) for a in ("val", "NA") for b in ("val", "NA")]
    text = card(tables_of(cross_auc=pd.DataFrame(rows, columns=CROSS_COLUMNS)))
    assert "| AUC: reals of | fakes of val | fakes of NA |\n| --- | --- | --- |\n| val |" in text
    assert text.count("| 0.5000 [0.4000, 0.6000] | 0.5000 [0.4000, 0.6000] |\n") == 2


NAMES = ["<img src=x onerror=alert(1)>", "a|b", "*a* _b_ `c` ~~d~~ $e$", "[x](javascript:f)",
         "![x](http://x)", "<!-- ", "a\\|b", "R&D &lt;", "two\nlines",
         "snake_case [0.1, 0.2]"]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_names_of_the_data_are_shown_as_they_are_written(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever makes a data set names its families and sources; the card is Markdown and HTML."""
    intervals = INTERVALS.replace({"slice": {"family=swap": f"family={name}"}})
    val = {"real": 1, "fake": 2, "unlabelled": 0, "num_groups": 3}
    val |= {"families": {name: 2}, "shortcuts": {}}
    data = DATA | {"sets": {"val": val}, "held_out": {name: 2}}
    monkeypatch.setattr("stages.card.draw_all", lambda _: {})
    monkeypatch.setattr("stages.card.read_tables", lambda _: {})
    config = CONFIG | {"initial_weights": f"sha256:{name}"}
    text = render(config, REPORT, data, tables_of(intervals=intervals))
    page = as_html(text)
    shown = escape(" ".join(name.split()))
    assert f"<td>{shown} 2</td>" in page  # the families of a set
    assert f"<td>family={shown}</td>" in page and f"AUC is family={shown} of val" in page
    assert f"held_out has them and the reals of val: {shown}." in page
    assert f"<td>weights from a file, sha256:{shown}</td>" in page
    assert "<img" not in page and "<a " not in page
    assert "<" not in plain_markdown(name)


def test_the_names_of_detectors_are_plain_in_the_comparison() -> None:
    name = "<b>a|b"
    one = Comparison("val", 5, 6, [(name, Interval(0.5, 0.4, 0.6))], pd.DataFrame())
    text = fill(
        "comparison.md.j2",
        comparisons=[one],
        sentences={"val": [f"{name} is better"]},
        level=0.05,
        fewest=10,
        own=name,
        seen={"val": 2},
    )
    assert "| 1 | &lt;b&gt;a\\|b | 0.5000 [0.4000, 0.6000] |\n" in text
    assert "- &lt;b&gt;a\\|b is better\n" in text
    assert "- **&lt;b&gt;a\\|b was trained on 2 of the groups in val**" in text

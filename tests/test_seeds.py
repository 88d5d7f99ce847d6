"""Mean and spread over seeds, from what DVC knows of its experiments."""

import pytest

from stages.chores.seeds import summary
from stages.lib.core.errors import UserError

SECTIONS = ["data", "train"]


def row(seed: int, auc: float | str, lr: float = 0.1, rev: str = "abc", **more: object) -> dict:
    return {
        "Experiment": "name",
        "rev": rev,
        "State": None,
        "val.auc": auc,
        "train.seed": seed,
        "train.lr": lr,
        "data.root": "faces",
        "stages/train.py": "1f",
        "data/model": str(seed),
        "data/labels/train.csv": "1e",
    } | more


def test_seeds_of_one_configuration_are_one_line() -> None:
    rows = [row(seed, auc) for seed, auc in enumerate([0.90, 0.92, 0.94])]
    rows += [row(0, 0.5, lr=0.2), row(9, 0.1, rev="workspace")]
    header, first, second = summary(rows, SECTIONS, ["val.auc"]).splitlines()
    assert header.split() == ["configuration", "seeds", "val.auc"]
    assert first.split() == [
        "train.lr=0.1",
        "3",
        "0.9200",
        "±",
        "0.0200",
        "(0.9000",
        "to",
        "0.9400)",
    ]
    assert second.split() == ["train.lr=0.2", "1", "0.5000"]


def test_other_code_is_another_configuration() -> None:
    rows = [row(0, 0.9), row(1, 0.8, **{"stages/train.py": "2e"})]
    assert len(summary(rows, SECTIONS, ["val.auc"]).splitlines()) == 3


def test_what_one_commit_lacks_is_another_configuration() -> None:
    """With --rev, commits may have other dependencies."""
    rows = [row(0, 0.9), row(0, 0.8, **{"stages/lib/core": "3f"})]
    assert len(summary(rows, SECTIONS, ["val.auc"]).splitlines()) == 3


def test_digests_are_shown_only_where_parameters_do_not_tell_configurations_apart() -> None:
    labels = "data/labels/train.csv"
    rows = [row(0, 0.9), row(0, 0.8, lr=0.2, **{labels: "2e"})]
    assert labels not in summary(rows, SECTIONS, ["val.auc"])
    rows.append(row(0, 0.7, lr=0.2, **{labels: "3e"}))
    assert labels in summary(rows, SECTIONS, ["val.auc"])


def test_the_same_seed_twice_is_one_result() -> None:
    assert (
        summary([row(0, 0.9), row(0, 0.9)], SECTIONS, ["val.auc"]).splitlines()[1].split()[1] == "1"
    )


def test_experiments_that_failed_are_counted_and_left_out() -> None:
    rows = [row(0, 0.9), row(1, "!"), row(2, float("nan")), row(3, 0.9, State="Failed")]
    first, note = summary(rows, SECTIONS, ["val.auc"]).splitlines()[1:]
    assert first.split()[1] == "1"
    assert note == "left out, not finished or without these metrics: 3"


def test_an_unknown_metric_is_refused_with_the_known_ones() -> None:
    with pytest.raises(UserError, match=r"none of 1 .* has val.acu; known are val.auc"):
        summary([row(0, 0.9)], SECTIONS, ["val.acu"])

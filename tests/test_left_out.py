"""Sources: evaluated one by one, left out, summed up over experiments, and said on the card."""

import shutil
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from sklearn.metrics import roc_auc_score

from stages.chores.left_out import Experiment, left_out_rows, summary
from stages.lib import paths
from stages.lib.core.errors import UserError
from stages.lib.core.params import load_params
from stages.lib.detector.hardware_params import ParallelHardwareParams
from stages.lib.evaluation.report import (
    INTERVAL_COLUMNS,
    EvaluateParams,
    evaluate_detector,
    labelled_sets,
    trained_sources,
)
from stages.lib.report.left_out import (
    LEFT_OUT_TYPES,
    NO_RECIPE,
    Unseen,
    counting_rows,
    read_left_out,
    recipe_of,
    unseen_sources,
)
from stages.lib.training.checkpoint import NO_EFFECT
from stages.lib.training.params import TrainParams
from stages.publish import flatten
from tests import test_card as cards
from tests.conftest import (
    ROOT,
    TINY,
    clone_project,
    easy_pixels,
    readme_commands,
    run,
    set_params,
    wait_for_queue,
)
from tests.test_slices import table

SOURCES = ["dfdc", "lfw", "stylegan"]
NO_EXPERT = {"pseudo_fakes": {"first_share": 0.0, "expert_weight": 0.0}}
TRAIN: dict[str, Any] = {"lr": 0.1, "seed": 0, "num_workers": 4} | NO_EXPERT
IMAGES = {"num_real": 30, "num_fake": 30}  # of each source in val and calibration
REPORT = {"trained_sources": dict.fromkeys(SOURCES, IMAGES)}


def scored(count: int, seed: int, **columns: Any) -> pd.DataFrame:
    """Return scored images of `count` rows of data/packed."""
    names = [f"{row}.jpg" for row in range(count)]
    return table(count, seed, img_name=names, row=range(count), **columns)


# ---------------------------------------------------------------------------------------------
# Evaluation


def test_each_source_with_both_classes_has_its_auc() -> None:
    sources = ["lfw", "lfw", "dfdc", "dfdc"] * 50 + ["film", "lfw"] * 10  # film has reals only
    val = scored(220, 0, source=sources)
    params = load_params("evaluate", EvaluateParams, ROOT / "params.yaml")
    report, _ = evaluate_detector({"val": val}, val, params)
    expected = {}
    for name in ("dfdc", "lfw"):
        part = val[val["source"] == name]
        expected[name] = roc_auc_score(part["target"], part["score"])
    figures = report["val"]
    assert {name: one["auc"] for name, one in figures["sources"].items()} == pytest.approx(expected)
    assert figures["source_mean_auc"] == pytest.approx(sum(expected.values()) / 2)
    assert figures["source_worst_auc"] == pytest.approx(min(expected.values()))
    assert "val.sources.lfw.auc" in flatten(report)
    assert trained_sources(val, val.head(4)) == {
        "dfdc": {"num_real": 51, "num_fake": 51},
        "lfw": {"num_real": 51, "num_fake": 61},
    }
    alone, _ = evaluate_detector({"val": val.assign(source="lfw")}, val, params)
    assert "sources" not in alone["val"] and "source_mean_auc" not in alone["val"]


def test_each_source_that_was_held_out_is_a_set() -> None:
    val = scored(40, 0, source="lfw", set="train")
    sources = ["dfdc", "dfdc", "GAN 2/3", "GAN 2/3"] * 10
    tables = {"val": val, "held_out_sources": scored(40, 1, source=sources)}
    sets = labelled_sets(lambda name: tables.get(name, val.head(0)))
    assert list(sets) == ["val", "held_out_GAN_2_3", "held_out_dfdc"]
    assert set(sets["held_out_dfdc"]["source"]) == {"dfdc"}


def test_the_card_has_a_row_for_each_source() -> None:
    rows = [
        ("val", f"source={name}", metric, auc, 0.6, 0.95)
        for name, auc in (("lfw", 0.9), ("dfdc", 0.7))
        for metric in ("auc", "tpr", "fpr")
    ]
    of_sources = pd.DataFrame(rows, columns=list(cards.INTERVALS)[:6]).assign(
        num_real=5, num_fake=6
    )
    figures = {"sources": {"dfdc": {"auc": 0.7}, "lfw": {"auc": 0.9}}}
    figures |= {"source_mean_auc": 0.8, "source_worst_auc": 0.7}
    report = cards.REPORT | {"val": cards.REPORT["val"] | figures}
    tables = cards.tables_of(intervals=pd.concat([cards.INTERVALS, of_sources]))
    text = cards.render(cards.CONFIG, report, cards.DATA, tables)
    part = text.split("## Per source")[1].split("## Slices")[0]
    interval = "0.9000 [0.6000, 0.9500]"
    assert f"| val | lfw | {interval} | {interval} | {interval} | 5, 6 |\n" in part
    assert "| val | mean, worst | 0.8000, 0.7000 | | | |\n" in part
    assert "source=lfw" not in text.split("## Slices")[1].split("##")[0]
    assert "## Per source" not in cards.card()


# ---------------------------------------------------------------------------------------------
# The line on unseen generators


def intervals_of(*rows: tuple[str, str, float, int]) -> pd.DataFrame:
    """Return intervals.csv from rows of set, slice, AUC and number of images of each class."""
    return pd.DataFrame(
        [(name, part, "auc", auc, auc - 0.1, auc + 0.1, num, num) for name, part, auc, num in rows],
        columns=INTERVAL_COLUMNS,
    )


VAL = intervals_of(("val", "all", 0.9, 90))


def rows_of(
    recipe: str, *rows: tuple[str, int, float], num: int = 30, expert_weight: float = 0.0
) -> pd.DataFrame:
    """Return left_out.csv from rows of source, seed and AUC."""
    table = pd.DataFrame(rows, columns=["source", "seed", "auc"])
    table = table.assign(low=table["auc"] - 0.1, high=table["auc"] + 0.1, num_real=num)
    return table.assign(num_fake=num, recipe=recipe, expert_weight=expert_weight)


def said(rows: pd.DataFrame, intervals: pd.DataFrame = VAL, **train: Any) -> Unseen:
    return unseen_sources(REPORT, intervals, TRAIN | train, rows)


RECIPE = recipe_of(TRAIN, SOURCES)
ROWS = rows_of(RECIPE, ("dfdc", 0, 0.6), ("dfdc", 1, 0.7), ("lfw", 0, 0.85), ("stylegan", 0, 0.5))


def test_without_a_source_left_out_the_card_says_not_measured() -> None:
    assert said(rows_of(RECIPE)) == Unseen("not measured", [])
    text = cards.card()
    assert "\n\n**On a generator that it has never seen: not measured.**\n\n" in text
    assert text.index("never seen") < text.index("| architecture |")


def test_the_sources_that_the_detector_itself_left_out_count_first() -> None:
    own = intervals_of(("held_out_dfdc", "all", 0.6, 30), ("held_out_dfdc", "size=9", 0.1, 3))
    unseen = said(ROWS, pd.concat([VAL, own]))
    assert unseen.answer == "AUC 0.6000 [0.5000, 0.7000], one source left out"
    assert unseen.sentences[0] == "This detector itself was trained and chosen without them."
    two = pd.concat([VAL, own, intervals_of(("held_out_lfw", "all", 0.8, 30))])
    answer = "AUC 0.7000 [0.6000, 0.8000], mean, worst and best over 2 sources left out"
    assert said(ROWS, two).answer == answer


def test_rows_of_this_recipe_are_averaged_by_source_and_then_over_sources() -> None:
    unseen = said(ROWS)
    mean = (0.65 + 0.85 + 0.5) / 3
    assert unseen.answer == (
        f"AUC {mean:.4f} [0.5000, 0.8500], mean, worst and best over 3 sources left out"
    )
    text = cards.render(cards.CONFIG, cards.REPORT, cards.DATA, cards.tables_of(), unseen)
    assert f"never seen: {unseen.answer}.** This detector has learnt from all of its 3" in text
    told = "stylegan 0.5000 [0.4000, 0.6000]; dfdc 0.6500 [0.5000, 0.8000] (2 seeds); lfw 0.8500"
    assert told in text
    part = said(ROWS[ROWS["source"] != "lfw"])
    assert "over 2 sources" in part.answer and "Never left out: lfw." in part.sentences


def test_the_weight_of_an_expert_is_chosen_on_the_other_sources() -> None:
    """On dfdc alone 0.5 is best, but a weight that was chosen on dfdc would flatter it."""
    plain = rows_of(RECIPE, ("dfdc", 0, 0.6), ("dfdc", 1, 0.6), ("lfw", 0, 0.7), ("gan", 0, 0.5))
    joined = rows_of(RECIPE, ("dfdc", 0, 0.9), ("lfw", 0, 0.6), ("gan", 0, 0.4), expert_weight=0.5)
    part = rows_of(RECIPE, ("dfdc", 0, 1.0), expert_weight=0.9)  # the others were not left out
    rows = pd.concat([plain, joined, part], ignore_index=True)
    counting = counting_rows(rows, 0.5)
    chosen = dict(zip(counting["source"], counting["expert_weight"], strict=True))
    assert chosen == {"dfdc": 0.0, "lfw": 0.5, "gan": 0.5}
    assert counting_rows(rows.assign(auc=rows["auc"] + 9 * (rows["source"] == "dfdc")), 0.5).equals(
        counting.assign(auc=counting["auc"] + 9 * (counting["source"] == "dfdc"))
    )
    assert counting_rows(rows, 0.3).empty
    assert set(counting_rows(plain, 0.0)["auc"]) == {0.5, 0.6, 0.7}
    one = rows[rows["source"] == "dfdc"]
    assert set(counting_rows(one, 0.5)["auc"]) == {0.9}


def test_the_card_says_how_the_weight_of_an_expert_was_chosen() -> None:
    expert = {"pseudo_fakes": {**NO_EXPERT["pseudo_fakes"], "expert_weight": 0.5}}
    tried = pd.concat([ROWS, ROWS.assign(expert_weight=0.5, auc=ROWS["auc"] + 0.1)])
    told = "The weight of the expert was chosen for each source on the others."
    assert said(ROWS, **expert).answer == "not measured for this recipe"
    assert told in said(tried, **expert).sentences and told in said(tried).sentences
    assert said(tried, **expert).answer.startswith(f"AUC {(0.65 + 0.85 + 0.5) / 3 + 0.1:.4f} ")
    lines = list(summary(tried.assign(sources="dfdc, lfw, stylegan")))
    assert f"recipe {RECIPE}, the expert at the weight that is best on the other sources" in lines


@pytest.mark.parametrize("change", ["parameter", "sources", "images"])
def test_rows_of_other_trainings_are_never_taken(change: str) -> None:
    rows = ROWS
    if change == "sources":
        rows = rows.assign(recipe=recipe_of(TRAIN, SOURCES[:2]))
    if change == "images":
        rows = rows.assign(num_real=31)
    unseen = said(rows, lr=0.2 if change == "parameter" else TRAIN["lr"])
    assert unseen.answer == "not measured for this recipe"
    assert unseen.sentences == [
        "metrics/left_out.csv has trainings of another recipe, other sources or other images."
    ]


def test_seed_and_hardware_are_no_part_of_a_recipe() -> None:
    assert said(ROWS, seed=5, num_workers=0) == said(ROWS)
    assert recipe_of(TRAIN, reversed(SOURCES)) == RECIPE
    assert NO_EFFECT | set(ParallelHardwareParams.model_fields) <= NO_RECIPE
    assert set(TrainParams.model_fields) >= NO_RECIPE


def test_the_committed_file_has_no_rows_and_a_damaged_one_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="left_out.csv: no such file; write it again: .*left_out`"):
        read_left_out()
    (tmp_path / "metrics").mkdir()
    shutil.copy(ROOT / paths.LEFT_OUT, tmp_path / "metrics")
    assert list(read_left_out()) == list(LEFT_OUT_TYPES) and read_left_out().empty


# ---------------------------------------------------------------------------------------------
# The chore


def experiment(held_out: list[str], seed: int = 0, auc: float = 0.6, **train: Any) -> Experiment:
    params = {"train": TRAIN | {"seed": seed} | train, "prepare": {"hold_out_sources": held_out}}
    trained = {name: IMAGES for name in SOURCES if name not in held_out}
    sets = [(f"held_out_{name}", "all", auc, 30) for name in held_out]
    intervals = intervals_of(("val", "all", 0.9, 60), *sets)
    return Experiment(params, {"trained_sources": trained}, intervals)


def test_experiments_become_the_rows_that_the_card_takes() -> None:
    experiments = [experiment([name], seed, 0.6 + seed / 10) for name in SOURCES for seed in (0, 1)]
    experiments += [experiment([]), experiment(["lfw", "dfdc"]), experiment(["lfw"], 1, 0.8)]
    rows = left_out_rows(experiments)
    assert len(rows) == 6 and set(rows["recipe"]) == {RECIPE}
    assert rows.set_index(["source", "seed"])["auc"]["lfw", 1] == 0.8  # the last one
    assert "AUC 0.6667 [0.6500, 0.7000], mean" in said(rows[list(LEFT_OUT_TYPES)]).answer
    lines = list(summary(rows))
    lfw, mean, worst = (lines[place] for place in (3, -2, -1))
    assert lines[0] == f"recipe {RECIPE}, sources dfdc, lfw, stylegan"
    assert lfw.split() == ["lfw", "0", "2", "0.7000", "±", "0.1414", "(0.6000", "to", "0.8000)",
                           "30,", "30"]  # fmt: skip
    assert mean.split() == ["mean", "0.6667"] and worst.split() == ["worst:", "dfdc", "0.6500"]


def test_missing_sources_and_mixed_recipes_are_told() -> None:
    lines = list(summary(left_out_rows([experiment(["lfw"]), experiment(["dfdc"], lr=0.2)])))
    assert lines[0] == "WARNING: 2 recipes; the card takes the one of its own detector"
    assert "WARNING: no finished experiment leaves out dfdc, stylegan" in lines
    assert "WARNING: no finished experiment leaves out lfw, stylegan" in lines
    with pytest.raises(UserError, match="no finished experiment leaves out one source; run them"):
        left_out_rows([experiment([])])


def draw_sources(root: Path) -> Path:
    """Draw a data set with a manifest, of three sources with 0, 10 and 20 % of wrong labels."""
    root.mkdir()
    rows = ["path,label,split,source"]
    for number, (source, part) in enumerate(product(SOURCES, ("train", "val"))):
        for index in range(40):
            is_wrong = index % 10 < SOURCES.index(source)
            pixels = easy_pixels(np.random.default_rng([number, index]), index % 2 ^ is_wrong)
            name = f"{source}_{part}_{index}.png"
            Image.fromarray(pixels).save(root / name)
            rows.append(f"{name},{index % 2},{part},{source}")
    (root / "list.csv").write_text("\n".join(rows) + "\n")
    return root


@pytest.mark.slow
def test_leaving_one_source_out_as_the_readme_shows(tmp_path: Path) -> None:
    """Three seeds for each of three sources, then the card of the detector of all of them."""
    root = draw_sources(tmp_path / "faces")
    more = {"data.root": str(root), "data.manifest.file": "list.csv", "train.epochs": 1}
    clone = clone_project(tmp_path / "clone", TINY | more)
    run("dvc", "repro", "card", cwd=clone)
    never_seen = "**On a generator that it has never seen: "
    assert f"{never_seen}not measured.**" in (clone / paths.CARD).read_text()
    run("git", "add", "-A", cwd=clone)
    run("git", "commit", "-qm", "baseline", cwd=clone)
    *before, chore, card = readme_commands("dvc exp run --queue evaluate")
    for command in before:
        run("bash", "-c", command, cwd=clone)
    wait_for_queue(clone)
    lines = run("bash", "-c", chore, cwd=clone).stdout.splitlines()
    assert lines[0].endswith(f", sources {', '.join(SOURCES)}")
    assert not [line for line in lines if "WARNING" in line]
    rows = pd.read_csv(clone / paths.LEFT_OUT)
    assert sorted(zip(rows["source"], rows["seed"], strict=True)) == [*product(SOURCES, range(3))]
    run("bash", "-c", card, cwd=clone)
    means = rows.groupby("source")["auc"].mean()
    answer = f"AUC {means.mean():.4f} [{means.min():.4f}, {means.max():.4f}], mean, worst and best"
    assert f"{never_seen}{answer} over 3 sources left out.**" in (clone / paths.CARD).read_text()
    set_params(clone, {"train.lr": 0.01})
    run("bash", "-c", card, cwd=clone)
    assert f"{never_seen}not measured for this recipe.**" in (clone / paths.CARD).read_text()


@pytest.mark.slow
def test_other_weights_of_an_expert_train_nothing_again(tmp_path: Path) -> None:
    """Two weights for each of two sources, side by side with the baseline, which has none."""
    root = draw_sources(tmp_path / "faces")
    more = {"data.root": str(root), "data.manifest.file": "list.csv", "train.epochs": 1}
    clone = clone_project(tmp_path / "clone", TINY | more)
    sources = "prepare.hold_out_sources=[dfdc],[lfw]"
    weights = "train.pseudo_fakes.expert_weight=0.25,0.5"
    run("dvc", "exp", "run", "--queue", "evaluate", "-S", sources, "-S", weights, cwd=clone)
    run("dvc", "queue", "start", cwd=clone)
    wait_for_queue(clone)
    lines = run("python", "-m", "stages.chores.left_out", cwd=clone).stdout.splitlines()
    rows = pd.read_csv(clone / paths.LEFT_OUT)
    pairs = sorted(zip(rows["source"], rows["expert_weight"], strict=True))
    assert pairs == [*product(["dfdc", "lfw"], [0.25, 0.5])] and rows["recipe"].nunique() == 1
    assert f"recipe {rows['recipe'][0]}, the expert at the weight that is best on" in "\n".join(
        lines
    )
    names = run("dvc", "exp", "list", "--name-only", cwd=clone).stdout.split()
    logs = [run("dvc", "queue", "logs", name, cwd=clone).stdout for name in names]
    assert sum(log.count("this network was trained before") for log in logs) == 4
    assert sum(log.count("  1/1 ") for log in logs) == 4

"""Measure what each ingredient of a recipe does, on real data, in and across data sets.

Run: python -m tests.benchmarks.ablation --lfw FOLDER --dfdc FOLDER --weights FILE \
         [--rows plain fast ...] [--seeds 0 1 2] [--train lfw dfdc both] [--screen]
                                                                  (from the repository's root)

The folders are in the competition's layout (RESULTS.md says which data they are). Each row of
ROWS is the preset `fast` with some parameters changed; `plain` is the fine-tuning without all of
it. `dvc repro` trains each one in a clone in .bench/ablation. The run cache there keeps results, so
the command goes on where it was interrupted. `--screen` trains for three epochs, to see in a few
minutes what deserves more. It prints a Markdown table: mean and standard deviation over the seeds.
`val` is of the data set that was trained on, `seconds` are those of the stage `train`.

The sets are neutral: LFW's validation images are resized to 224 px and compressed as JPEG of
quality 90 and 30, real and fake alike, because its files tell the classes apart by their headers.
"""

import argparse
import json
import shutil
import time
from pathlib import Path
from typing import Any

import pandas as pd
from PIL import Image

from stages.chores.preset import with_preset
from stages.lib.core.files import atomic_folder
from stages.lib.core.tables import write_table
from stages.lib.training.augmentation import OPERATIONS
from stages.lib.training.pseudo_fakes import KINDS
from tests.conftest import ROOT, clone_project, run, set_params

FOLDER = ROOT / ".bench/ablation"
QUALITIES = (90, 30)
# Whole images have room for fewer epochs in the same time.
WHOLE = {"train.face_crop": None, "train.image_size": 224, "train.epochs": 4}
OFF = {f"train.augmentation.{name}.probability": 0.0 for name in OPERATIONS}


def pairs(first_share: float, last_share: float) -> dict[str, float]:
    """Return the parameters for pairs of reals and their pseudo-fakes in each batch."""
    names = ("train.pseudo_fakes.first_share", "train.pseudo_fakes.last_share")
    return dict(zip(names, (first_share, last_share), strict=True))


def only(kind: str) -> dict[str, float]:
    """Return the parameters that make one kind of pseudo-fake alone."""
    return {f"train.pseudo_fakes.kinds.{name}": float(name == kind) for name in KINDS}


ROWS: dict[str, dict[str, Any]] = {
    "fast": {},
    "plain": OFF | WHOLE | {"train.lr": 5e-4},
    "no face_crop": WHOLE,
    "face_crop 1.4": {"train.face_crop": 1.4},
    "no degradations": OFF,
    "more degradations": {
        "train.augmentation.max_ops": 3,
        **{f"train.augmentation.{name}.probability": 0.4 for name in ("jpeg", "rescale", "noise")},
        **{f"train.augmentation.{name}.probability": 0.2 for name in ("webp", "blur", "colour")},
    },
    "pseudo-fakes": pairs(0.25, 0.25),
    "pseudo-fakes alone": pairs(1.0, 1.0),
    "curriculum": pairs(0.0, 1.0),
    **{f"only {kind}": pairs(0.33, 0.33) | only(kind) for kind in KINDS},
    "residuals": {"train.residuals": "srm"},
    "no zero_head": {"train.zero_head": False},
    "norms": {"train.trainable": "norms"},
    "layer_decay": {"train.layer_decay": 0.75},
    "frozen_epochs": {"train.frozen_epochs": 1},
    "average_last": {"train.average_last": 2},
    "ema": {"train.ema_decay": 0.99},
    "label_smoothing": {"train.label_smoothing": 0.1},
    "mixup": {"train.mixup": 0.2},
    "lr 5e-4": {"train.lr": 5e-4},
    "160 px": {"train.image_size": 160, "train.epochs": 6},
    "7 epochs": {"train.epochs": 7},  # of DFDC's 4,000 images, in the time of ten of LFW's
}
SCREEN = {"train.image_size": 128, "train.epochs": 3}


def main() -> None:
    """Run what is missing, and print the table after each row."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--lfw", type=Path, required=True)
    parser.add_argument("--dfdc", type=Path, required=True)
    parser.add_argument("--weights", type=Path, required=True, help="of the network of `fast`")
    parser.add_argument("--rows", nargs="+", default=["fast"], choices=ROWS)
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--train", nargs="+", default=["lfw"], choices=["lfw", "dfdc", "both"])
    parser.add_argument("--screen", action="store_true", help="three epochs at 128 px")
    options = parser.parse_args()
    roots = {"lfw": options.lfw.resolve(), "dfdc": options.dfdc.resolve()}
    sets = neutral_sets(roots["lfw"]) | {"dfdc": roots["dfdc"]}
    roots["both"] = joined(roots)
    clones = {name: clone_of(name) for name in options.train}
    results = []
    for row in options.rows:
        for trained_on, clone in clones.items():
            for seed in options.seeds:
                data = {
                    "data.root": str(roots[trained_on]),
                    "data.evaluation_sets": {name: str(path) for name, path in sets.items()},
                    "train.weights": str(options.weights.resolve()),
                    "pack.outside": "allow",
                    "train.seed": seed,
                    "train.decoded_gb": 4.0,
                }
                changes = data | ROWS[row] | (SCREEN if options.screen else {})
                results.append({"row": row, "trained on": trained_on} | measure(clone, changes))
                print(table_of(results), flush=True)


def neutral_sets(lfw: Path) -> dict[str, Path]:
    """Write the validation images of LFW at 224 px and each quality; return the folders."""
    sets = {f"jpeg{quality}": FOLDER / f"jpeg{quality}" for quality in QUALITIES}
    for quality, target in zip(QUALITIES, sets.values(), strict=True):
        with atomic_folder(target) as folder:
            (folder / "valset").mkdir()
            shutil.copy(lfw / "valset_label.txt", folder)
            for file in sorted((lfw / "valset").iterdir()):
                with Image.open(file) as image:
                    small = image.convert("RGB").resize((224, 224), Image.Resampling.BICUBIC)
                small.save(folder / "valset" / file.name, quality=quality)
    return sets


def joined(roots: dict[str, Path]) -> Path:
    """Link both data sets into one folder, with the collection as `source`; return it."""
    folder = FOLDER / "both"
    for part in ("trainset", "valset"):
        (folder / part).mkdir(parents=True, exist_ok=True)
        lists = []
        for source, root in roots.items():
            table = pd.read_csv(root / f"{part}_label.txt")[["img_name", "target"]]
            for name in table["img_name"]:
                link = folder / part / f"{source}_{name}"
                if not link.exists():
                    link.symlink_to(root / part / name)
            names = f"{source}_" + table["img_name"]
            lists.append(table.assign(img_name=names, source=source))
        write_table(pd.concat(lists), folder / f"{part}_label.txt")
    return folder


def clone_of(trained_on: str) -> Path:
    """Return the clone for one training set, with the code of today."""
    clone = FOLDER / trained_on
    if not clone.exists():
        clone_project(clone)
    shutil.rmtree(clone / "stages")
    shutil.copytree(ROOT / "stages", clone / "stages")
    shutil.copy(ROOT / "dvc.yaml", clone)
    return clone


def write_fast(folder: Path) -> None:
    """Write params.yaml with the preset `fast` into a folder."""
    (folder / "params.yaml").write_text(with_preset((ROOT / "params.yaml").read_text(), "fast"))


def measure(clone: Path, changes: dict[str, Any]) -> dict[str, float]:
    """Train the preset `fast` with these changes and evaluate; return the columns of the table."""
    write_fast(clone)
    set_params(clone, changes)
    run("dvc", "repro", "prepare", cwd=clone, TRACKING="off")
    start = time.perf_counter()
    run("dvc", "repro", "train", cwd=clone, TRACKING="off")
    seconds = first_seconds(clone / "data/model/config.json", time.perf_counter() - start)
    run("dvc", "repro", "evaluate", cwd=clone, TRACKING="off")
    report = json.loads((clone / "metrics/evaluation.json").read_text())
    return {
        "JPEG 90": report["jpeg90"]["auc"],
        "TPR at FPR 1e-2": report["jpeg90"]["tpr_at_fpr_1e-2"],
        "JPEG 30": report["jpeg30"]["auc"],
        "robustness": report["robustness"]["mean_auc"],
        "DFDC": report["dfdc"]["auc"],
        "TPR at FPR 1e-2 of DFDC": report["dfdc"]["tpr_at_fpr_1e-2"],
        "val": report["val"]["auc"],
        "seconds": seconds,
    }


def first_seconds(config: Path, seconds: float) -> float:
    """Return how long these weights took when they were trained, not restored from a cache."""
    weights = json.loads(config.read_text())["weights_sha256"]
    known = FOLDER / "seconds" / weights
    if not known.exists():
        known.parent.mkdir(parents=True, exist_ok=True)
        known.write_text(f"{seconds:.0f}")
    return float(known.read_text())


def table_of(results: list[dict[str, Any]]) -> str:
    """Return the results as Markdown: mean ± standard deviation over n seeds."""
    table = pd.DataFrame(results)
    names = [name for name in table if name not in ("row", "trained on")]
    lines = [f"| row | trained on | n | {' | '.join(names)} |", "|---" * (len(names) + 3) + "|"]
    for (row, trained_on), part in table.groupby(["row", "trained on"], sort=False):
        digits = {name: 0 if name == "seconds" else 3 for name in names}
        cells = [
            f"{part[name].mean():.{digits[name]}f}"
            + (f" ± {part[name].std():.{digits[name]}f}" if len(part) > 1 else "")
            for name in names
        ]
        lines.append(f"| {row} | {trained_on} | {len(part)} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()

"""Time training to a stated validation AUC: the preset `fast`, plain fine-tuning, the notebooks.

Run: python -m tests.benchmarks.time_to_quality --lfw FOLDER --weights FILE \
         [--auc 0.98] [--minutes 20] [--seeds 0 1 2]               (from the repository's root)

The folder has the LFW face swaps of RESULTS.md in the competition's layout. All three train
the same network from the same weights and are judged on the same images: LFW's validation set at
224 px, compressed alike as JPEG of quality 90. The clock runs while they train, from the first
image that is decoded, and stops while they are judged: after every twenty steps, the notebooks
after each epoch. Each recipe runs in a process of its own.

- fast: `stages.train`'s loop with the preset
- plain: the same with the settings that a plain fine-tuning has: the whole image at 224 px,
  flips, one more JPEG compression that hides the traces of the files, one epoch of warm-up, a
  learning rate of 5e-4, a new head as it comes
- notebooks: one file per image, Pillow, 256 px, both flips, Adam at 1e-4, the files as they are
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import timm
import torch
from sklearn.metrics import roc_auc_score
from torch.utils.data import DataLoader

from stages.lib.core.params import load_params
from stages.lib.data.layouts.competition import competition_sets
from stages.lib.data.layouts.image_set import ImageSet
from stages.lib.training.decode_cache import decode_ahead
from stages.lib.training.params import TrainParams
from stages.lib.training.validation import validate, validation_loader
from tests.benchmarks.ablation import FOLDER, ROWS, neutral_sets, write_fast
from tests.benchmarks.notebook import BATCH_SIZE, FileImages, epoch_of
from tests.benchmarks.training import packed_loop
from tests.conftest import ROOT, environment, set_params

PLAIN = ROWS["plain"] | {"train.zero_head": False, "train.warmup_epochs": 1}
STEPS = 20  # from one judgement to the next
RECIPES = ("fast", "plain", "notebooks")


def main() -> None:
    """Print a line of JSON for each recipe and seed."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--lfw", type=Path, required=True)
    parser.add_argument("--weights", type=Path, required=True, help="of the network of `fast`")
    parser.add_argument("--auc", type=float, default=0.98)
    parser.add_argument("--minutes", type=float, default=20, help="when to give up")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--only", choices=RECIPES, help="one recipe and seed, in this process")
    options = parser.parse_args()
    if options.only:
        print(json.dumps(measure(options.only, options, options.seeds[0])), flush=True)
        return
    neutral_sets(options.lfw)
    for seed in options.seeds:
        for recipe in RECIPES:
            command = [sys.executable, "-m", "tests.benchmarks.time_to_quality", *sys.argv[1:]]
            one = ["--seeds", str(seed), "--only", recipe]
            subprocess.run([*command, *one], cwd=ROOT, env=environment(), check=True)


class Finished(Exception):
    """The race is over."""


@dataclass
class Race:
    """A clock that stops while the detector is judged."""

    wanted_auc: float
    limit: float  # seconds
    seconds: float = 0.0
    aucs: list[float] = field(default_factory=list)

    def start(self) -> None:
        """Let the clock run."""
        self.since = time.perf_counter()

    def judge(self, auc: Callable[[], float]) -> None:
        """Stop the clock, judge and go on; raises Finished where the race is over."""
        self.seconds += time.perf_counter() - self.since
        self.aucs.append(round(auc(), 4))
        print(f"{self.seconds:.0f} s, AUC {self.aucs[-1]}", flush=True)
        if self.aucs[-1] >= self.wanted_auc or self.seconds > self.limit:
            raise Finished
        self.start()


def measure(recipe: str, options: argparse.Namespace, seed: int) -> dict[str, object]:
    """Train until the AUC is reached or the time is up."""
    race = Race(options.auc, 60 * options.minutes)
    sets = {"train": options.lfw, "val": FOLDER / "jpeg90"}
    images = {name: competition_sets(root)[name] for name, root in sets.items()}
    with tempfile.TemporaryDirectory() as folder:
        os.environ["DVC_ROOT"] = folder  # an empty cache of decoded images
        changes = {"train.weights": str(options.weights), "train.seed": seed}
        write_fast(Path(folder))
        set_params(Path(folder), changes | (PLAIN if recipe == "plain" else {}))
        params = load_params("train", TrainParams, Path(folder) / "params.yaml")
        run = of_notebooks if recipe == "notebooks" else of_stage
        print(f"{recipe}, seed {seed}", flush=True)
        with suppress(Finished):
            run(params, images, Path(folder), race)
    reached = race.aucs[-1] >= options.auc
    return {
        "recipe": recipe,
        "seed": seed,
        "reached": reached,
        "seconds": round(race.seconds),
        "auc": race.aucs,
    }


def of_stage(params: TrainParams, sets: dict[str, ImageSet], folder: Path, race: Race) -> None:
    """Run the epochs of stages.train's loop."""
    loop, val, _ = packed_loop(params, sets, folder)
    loader = validation_loader(val, params, loop.hardware)
    decode_ahead({"val": val}, 10, params.num_workers)
    race.start()
    decode_ahead({"train": loop.images}, 10, params.num_workers)

    def look() -> None:
        if loop.done % STEPS == 0:
            race.judge(lambda: validate(loop.detector, loader, loop.hardware)["val_auc"])
            loop.detector.train()

    for epoch in range(params.epochs):
        loop.train_epoch(epoch, look)


def of_notebooks(params: TrainParams, sets: dict[str, ImageSet], folder: Path, race: Race) -> None:
    """Run the notebooks' epochs, with the network and weights of the params."""
    torch.manual_seed(params.seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    loaders = {}
    for name, image_set in sets.items():
        images = FileImages(image_set.folder, image_set.rows)
        if name == "val":
            del images.transform.transforms[1:3]  # the flips
        loaders[name] = DataLoader(images, BATCH_SIZE, shuffle=name == "train", num_workers=2)
    model = timm.create_model(
        params.model,
        pretrained=True,
        pretrained_cfg_overlay={"file": params.weights},
        num_classes=2,
    ).to(device)
    train = epoch_of(model, loaders["train"], device)

    @torch.no_grad()
    def auc() -> float:
        model.eval()
        parts = [(model(batch.to(device)).cpu(), targets) for batch, targets in loaders["val"]]
        outputs, targets = (torch.cat(part) for part in zip(*parts, strict=True))
        return float(roc_auc_score(targets, outputs[:, 1] - outputs[:, 0]))

    race.start()
    while True:
        train()
        race.judge(auc)


if __name__ == "__main__":
    main()

"""What a training prints and writes to MLflow while it runs."""

import pandas as pd

from stages.lib import paths
from stages.lib.core.labels import CLASS_NAMES, FAKE, REAL
from stages.lib.detector.hardware import Hardware
from stages.lib.detector.model import Detector, count_parameters
from stages.lib.tracking.run import Tracker
from stages.lib.training.loop import TrainingLoop
from stages.lib.training.params import TrainParams
from stages.lib.training.results import TrainingResults, choosing_auc

HEADINGS = "epoch         lr  train loss  val loss  val acc  val AUC  images/s  waiting  memory GB"


def announce(
    params: TrainParams,
    detector: Detector,
    labels: dict[str, pd.DataFrame],
    hardware: Hardware,
    tracker: Tracker,
    results: TrainingResults,
) -> None:
    """Report device, model and data before the training of a network; of an expert, what it is."""
    if results.prefix:
        print("expert: a second network, which sees reals and pseudo-fakes alone", flush=True)
        return
    num_parameters = count_parameters(detector)
    micro_batch = params.micro_batch_size(hardware.world_size)
    weights = f"weights from {params.weights}"
    if params.weights == "random":
        weights = "random initialisation, no pretrained weights"
    print(f"device: {hardware}")
    print(f"model: {params.model}, {num_parameters / 1e6:.1f} M parameters, {weights}")
    for name, table in labels.items():
        print(f"{name}: {len(table)} images, {(table['target'] == FAKE).mean():.0%} fake")
        if name == "train":
            print_sources(table)
        tracker.log_dataset(table, name, paths.LABELS / f"{name}.csv")
    print(
        f"a step: {params.batch_size} images, {micro_batch} at a time in each process", flush=True
    )
    tracker.log_tags({"device": str(hardware), "micro_batch": micro_batch})


def print_sources(labels: pd.DataFrame) -> None:
    """Print how many reals and fakes each source has, where there are several."""
    sources = labels["source"].fillna("without a source")
    counts = pd.crosstab(sources, labels["target"]).reindex(columns=[REAL, FAKE], fill_value=0)
    for name, reals, fakes in counts.itertuples() if len(counts) > 1 else ():
        missing = "" if reals and fakes else f", no {CLASS_NAMES[FAKE if reals else REAL]} images"
        print(f"  {name}: {reals} real, {fakes} fake{missing}")


def report_start(results: TrainingResults, loop: TrainingLoop) -> None:
    """Print where a resumed training goes on, and the headings of the table of epochs."""
    if results.is_finished(loop.params):
        print("this network was trained before: its checkpoint has all epochs", flush=True)
        return
    where = ""
    if loop.done:
        total = loop.steps_per_epoch * loop.params.num_micro_batches
        where = f"in epoch {results.epochs + 1}, after {loop.done} of {total} batches"
    elif results.epochs:
        where = f"after epoch {results.epochs}"
    if where:
        print(f"this training was stopped before; it goes on {where}")
    by = loop.params.choose_epoch_by
    choosing = "" if by == "pooled" else f"{by + ' AUC':>11}"
    print(HEADINGS.replace("val AUC", f"val AUC{choosing}"), flush=True)


def report_epoch(
    params: TrainParams, results: TrainingResults, speed: dict[str, float], tracker: Tracker
) -> None:
    """Print a line about the last epoch, and write its figures to MLflow."""
    epoch, row = results.epochs, results.history[-1]
    choosing = ""
    if params.choose_epoch_by != "pooled":
        choosing = f"  {choosing_auc(row, params):9.4f}"
    print(
        f"{epoch:3d}/{params.epochs:<3d} {row['lr']:8.2e}  {row['train_loss']:10.4f}"
        f"  {row['val_loss']:8.4f}  {row['val_accuracy']:7.4f}  {row['val_auc']:7.4f}{choosing}"
        f"  {speed['images_per_second']:8.1f}  {speed['waiting_share']:7.1%}"
        f"  {speed['peak_memory_gb']:9.2f}{'  best' if results.best.epoch == epoch else ''}",
        flush=True,
    )
    log_row(row, results.prefix, tracker)
    tracker.log_metrics(
        {f"speed/{results.prefix}{name}": value for name, value in speed.items()}, step=epoch
    )


def log_row(row: dict[str, float], prefix: str, tracker: Tracker) -> None:
    """Write the figures of an epoch to MLflow."""
    figures = {f"{prefix}{name}": row[name] for name in row if name != "epoch"}
    tracker.log_epoch(int(row["epoch"]), figures)

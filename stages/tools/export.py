"""Export a detector: ONNX, torch.export, weights, configuration and rules in one folder.

Run: python -m stages.tools.export FOLDER [--model data/model] [--int8]

`python -m stages.tools.detect --model FOLDER` and `serve` then run the ONNX file where they use the
CPU. The exported networks are compared with the detector on all validation images; where the
logits differ by more than the tolerance, nothing is written. --int8 adds a network of 8-bit
numbers, which they then prefer. Its scores differ, so it is compared by AUC and verdicts.
"""

from dataclasses import replace
from pathlib import Path
from shutil import copyfile

import numpy as np
import torch
from scipy.special import expit
from sklearn.metrics import roc_auc_score

from stages.lib import paths
from stages.lib.core.errors import UserError
from stages.lib.core.files import atomic_folder, sha256_of, write_text
from stages.lib.core.labels import read_labels
from stages.lib.detector.dataset import LabelledImages, make_loader, sequential_batches
from stages.lib.detector.distance import DISTANCE_FILE
from stages.lib.detector.inference import BATCH_SIZE, Inference, Network
from stages.lib.detector.model import CONFIG_FILE, WEIGHTS_FILE
from stages.lib.evaluation.verdict_rules import Thresholds
from stages.lib.progress import progress_bar
from stages.lib.running import run_command
from stages.lib.verdict.examiner import RULES_FILE, Examiner, rules_file
from stages.lib.verdict.load import load_examiner
from stages.lib.verdict.networks import (
    EXPORT_FILE,
    INT8_FILE,
    ONNX_FILE,
    TORCH_FILE,
    Export,
    export_network,
    onnx_network,
    quantise,
)
from stages.tools.command_line import add_threads, parser_of

DETECTOR = "detector"  # itself, beside the exported networks
LOGIT_TOLERANCE = 1e-3  # of an exported network
AUC_TOLERANCE = 0.005  # that the AUC of the int8 network may be lower
MOST_RANGED = 256  # calibration images that the ranges of int8 numbers come from


def main() -> None:
    """Write the folder, or nothing."""
    parser = parser_of(__doc__, "stages.tools.export")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", type=Path, default=paths.MODEL)
    parser.add_argument("--int8", action="store_true", help="add a faster network of 8-bit numbers")
    add_threads(parser)
    options = parser.parse_args()
    _check_target(options.folder)
    examiner = load_examiner(
        str(options.model), "cpu", options.threads, crop=False, max_megapixels=100
    )
    images = _images("val", examiner)
    with atomic_folder(options.folder.resolve()) as folder:
        for name in (WEIGHTS_FILE, CONFIG_FILE, DISTANCE_FILE):
            if (options.model / name).is_file():
                copyfile(options.model / name, folder / name)
        copyfile(rules_file(options.model), folder / RULES_FILE)
        networks = _write_networks(examiner, folder, options.int8, options.threads)
        export = _compare(examiner, folder, networks, images)
        _check(export)
        write_text(folder / EXPORT_FILE, export.model_dump_json(indent=2) + "\n")
    for name, difference in export.largest_difference_of_logits.items():
        print(
            f"{options.folder / name}: logits within {difference:.1e} of the detector's, AUC "
            f"{export.auc[name]:.4f} and {export.auc[DETECTOR]:.4f}, other verdicts of "
            f"{export.changed_verdicts[name]:.1%} of {len(images)} validation images"
        )


def _check_target(folder: Path) -> None:
    """Raise UserError for a folder with other things in it, which would be gone."""
    is_ours = (folder / EXPORT_FILE).is_file()
    if folder.exists() and not is_ours and (folder.is_file() or any(folder.iterdir())):
        raise UserError(f"{folder}: exists, and no export is in it; name a new folder")


def _images(set_name: str, examiner: Examiner) -> LabelledImages:
    labels = read_labels(paths.LABELS / f"{set_name}.csv")
    return LabelledImages(labels, paths.PACKED, examiner.config.preprocessing)


def _write_networks(
    examiner: Examiner, folder: Path, int8: bool, threads: int
) -> dict[str, Network]:
    """Write the exported networks into a folder; return them by the names of their files."""
    side = examiner.config.preprocessing.image_size
    export_network(examiner.inference.detector, side, folder)
    program = torch.export.load(folder / TORCH_FILE).module()
    networks: dict[str, Network] = {
        ONNX_FILE: onnx_network(folder / ONNX_FILE, threads),
        TORCH_FILE: lambda images: program(images),
    }
    if int8:
        calibration = _images("calibration", examiner)
        chosen = np.linspace(0, len(calibration) - 1, min(len(calibration), MOST_RANGED))
        inputs = torch.stack([calibration.inputs(int(index)) for index in chosen])
        quantise(folder / ONNX_FILE, folder / INT8_FILE, inputs, BATCH_SIZE)
        networks[INT8_FILE] = onnx_network(folder / INT8_FILE, threads)
    return networks


def _compare(
    examiner: Examiner, folder: Path, networks: dict[str, Network], images: LabelledImages
) -> Export:
    """Return how well the exported networks agree with the detector."""
    detector = replace(examiner.inference, views=["plain"])
    exported = {name: replace(detector, network=network) for name, network in networks.items()}
    logits = logits_of({DETECTOR: detector} | exported, images)
    limits = examiner.rules.thresholds
    verdicts = {name: _called(values, limits) for name, values in logits.items()}
    expected, called = logits[DETECTOR], verdicts[DETECTOR]
    return Export(
        weights_sha256=examiner.config.weights_sha256,
        config_sha256=examiner.config.config_sha256,
        sha256={name: sha256_of(folder / name) for name in networks},
        largest_difference_of_logits={
            name: float(np.abs(logits[name] - expected).max()) for name in networks
        },
        num_images=len(images),
        auc={name: float(roc_auc_score(images.targets, logits[name])) for name in logits},
        changed_verdicts={name: float((verdicts[name] != called).mean()) for name in networks},
    )


def logits_of(inferences: dict[str, Inference], images: LabelledImages) -> dict[str, np.ndarray]:
    """Return the logits of each network for all images, float64 (N,), from one decoding.

    Raises UserError for a network that gives NaN.
    """
    loader = make_loader(images, sequential_batches(len(images), BATCH_SIZE), 0, pin=False)
    parts: dict[str, list[torch.Tensor]] = {name: [] for name in inferences}
    with progress_bar("compare", len(images)) as bar:
        for inputs, _, _ in loader:
            for name, inference in inferences.items():
                parts[name].append(inference.logits(inputs[:, None])[:, 0])
            bar.update(len(inputs))
    logits = {name: torch.cat(values).numpy() for name, values in parts.items()}
    for name, values in logits.items():
        if not np.isfinite(values).all():
            raise UserError(f"{name}: gives scores that are not numbers; use the detector itself")
    return logits


def _called(logits: np.ndarray, limits: Thresholds) -> np.ndarray:
    """Return 1 for fake, -1 for real, 0 between the thresholds: int (N,)."""
    scores = expit(logits)
    return (scores >= limits.fake_from).astype(int) - (scores < limits.real_below)


def _check(export: Export) -> None:
    """Raise UserError where an exported network is not good enough."""
    for name, difference in export.largest_difference_of_logits.items():
        if name != INT8_FILE and difference > LOGIT_TOLERANCE:
            raise UserError(
                f"{name}: its logits differ by up to {difference:.2g} from the detector's; use "
                "the detector itself, and report its architecture"
            )
    if export.auc.get(INT8_FILE, 1.0) < export.auc[DETECTOR] - AUC_TOLERANCE:
        raise UserError(
            f"--int8: its AUC is {export.auc[INT8_FILE]:.4f}, that of the detector "
            f"{export.auc[DETECTOR]:.4f}; export without it"
        )


if __name__ == "__main__":
    run_command(main)

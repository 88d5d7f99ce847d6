"""Export a detector: ONNX, torch.export, weights, configuration and rules in one folder.

Run: python -m stages.tools.export FOLDER [--model data/model]

`python -m stages.tools.detect --model FOLDER` and `serve` then run the ONNX file where they use the
CPU. The exported networks are compared with the detector on all validation images; where the
logits differ by more than the tolerance, nothing is written.
"""

import argparse
from pathlib import Path
from shutil import copyfile

import numpy as np
import torch

from stages.lib import paths
from stages.lib.core.errors import UserError
from stages.lib.core.files import fresh_folder, sha256_of, write_text
from stages.lib.core.labels import read_labels
from stages.lib.core.progress import progress_bar
from stages.lib.core.running import run_command
from stages.lib.detector.dataset import LabelledImages, make_loader, sequential_batches
from stages.lib.detector.model import CONFIG_FILE, WEIGHTS_FILE
from stages.lib.verdict.judge import RULES_FILE, rules_file
from stages.lib.verdict.load import load_judge
from stages.lib.verdict.networks import (
    EXPORT_FILE,
    ONNX_FILE,
    TOLERANCE,
    TORCH_FILE,
    Export,
    Network,
    export_network,
    onnx_network,
    torch_network,
)

BATCH_SIZE = 32


def main() -> None:
    """Write the folder, or nothing."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--model", type=Path, default=paths.MODEL)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    _check_target(options.folder)
    judge = load_judge(str(options.model), "cpu", options.threads, crop=False, max_megapixels=100)
    labels = read_labels(paths.LABELS / "val.csv")
    images = LabelledImages(labels, paths.PACKED, judge.config.preprocessing)
    with fresh_folder(options.folder) as folder:
        for file in (options.model / WEIGHTS_FILE, options.model / CONFIG_FILE):
            copyfile(file, folder / file.name)
        copyfile(rules_file(options.model), folder / RULES_FILE)
        export_network(judge.detector, judge.config.preprocessing.image_size, folder)
        program = torch.export.load(folder / TORCH_FILE).module()
        networks: dict[str, Network] = {
            ONNX_FILE: onnx_network(folder / ONNX_FILE, options.threads),
            TORCH_FILE: lambda images: program(images),
        }
        found = compare(torch_network(judge.detector, judge.hardware), networks, images)
        for name, difference in found.items():
            if not difference <= TOLERANCE:
                raise UserError(
                    f"{name}: its logits differ by up to {difference:.2g} from the detector's; "
                    "use the detector itself, and report its architecture"
                )
        facts = Export(
            weights_sha256=judge.config.weights_sha256,
            config_sha256=judge.config.config_sha256,
            sha256={name: sha256_of(folder / name) for name in found},
            largest_difference_of_logits=found,
            num_images=len(images),
        )
        write_text(folder / EXPORT_FILE, facts.model_dump_json(indent=2) + "\n")
    for name, difference in found.items():
        print(f"{options.folder / name}: logits within {difference:.1e} of the detector's, "
              f"{len(images)} validation images")  # fmt: skip


def _check_target(folder: Path) -> None:
    """Raise UserError for a folder with other things in it, which would be gone."""
    is_ours = (folder / EXPORT_FILE).is_file()
    if folder.exists() and not is_ours and (folder.is_file() or any(folder.iterdir())):
        raise UserError(f"{folder}: exists, and no export is in it; name a new folder")


@torch.inference_mode()
def compare(
    network: Network, others: dict[str, Network], images: LabelledImages
) -> dict[str, float]:
    """Return by how much the logits of other networks differ at most, over all images."""
    loader = make_loader(images, sequential_batches(len(images), BATCH_SIZE), 0, pin=False)
    largest = dict.fromkeys(others, 0.0)
    with progress_bar("compare", len(images)) as bar:
        for batch, _, _ in loader:
            expected = network(batch)
            for name, other in others.items():
                difference = float((other(batch) - expected).abs().max())
                largest[name] = float(np.maximum(largest[name], difference))  # keeps NaN
            bar.update(len(batch))
    return largest


if __name__ == "__main__":
    run_command(main)

"""How fast verdicts are: networks on the CPU side by side, and the server under load.

Run: python -m tests.benchmarks.verdicts [--model data/model] [--folder FOLDER] [--requests 2000]

Run it where the pipeline has run. The networks score the validation images as PyTorch does eagerly,
compiled, as ONNX in fp32 and in int8. The server is asked by 1, 8 and 32 clients that keep their
connection, each image in turn; its memory is read through all requests.
"""

import argparse
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from threading import local
from typing import Any

import numpy as np
import psutil
import requests
import torch
from sklearn.metrics import roc_auc_score

from stages.lib import paths
from stages.lib.core.labels import read_labels
from stages.lib.detector.dataset import LabelledImages
from stages.lib.verdict.examiner import Examiner
from stages.lib.verdict.load import load_examiner
from stages.lib.verdict.networks import (
    INT8_FILE,
    ONNX_FILE,
    FakeLogit,
    Network,
    export_network,
    onnx_network,
    quantise,
)

THREADS = 2
BATCH_SIZE = 16
ROUNDS = 5  # of which the median counts
CLIENTS = (1, 8, 32)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", type=Path, default=paths.MODEL)
    parser.add_argument("--folder", type=Path, default=paths.SAMPLE / "phase1/valset")
    parser.add_argument("--images", type=int, default=512, help="validation images to score")
    parser.add_argument("--requests", type=int, default=2000, help="to the server, per clients")
    options = parser.parse_args()
    examiner = load_examiner(str(options.model), "cpu", THREADS, crop=True, max_megapixels=100)
    labels = read_labels(paths.LABELS / "val.csv").head(options.images)
    images = LabelledImages(labels, paths.PACKED, examiner.config.preprocessing)
    inputs = torch.stack([images[0, index][0] for index in range(len(images))])
    with TemporaryDirectory() as folder:
        compare_networks(networks_of(examiner, inputs, Path(folder)), inputs, images.targets)
    files = sorted(options.folder.iterdir())
    for clients in CLIENTS:
        ask_server(options.model, files, clients, options.requests)


# ---------------------------------------------------------------------------------------------
# Networks


def networks_of(examiner: Examiner, inputs: torch.Tensor, folder: Path) -> dict[str, Network]:
    """Return the same detector in each form."""
    side = examiner.config.preprocessing.image_size
    export_network(examiner.detector, side, folder)
    quantise(folder / ONNX_FILE, folder / INT8_FILE, inputs[:128], BATCH_SIZE)
    compiled: Any = torch.compile(FakeLogit(examiner.detector))
    return {
        "PyTorch, eager": examiner.network.run,
        "PyTorch, compiled": torch.inference_mode()(lambda images: compiled(images)),
        "ONNX Runtime, fp32": onnx_network(folder / ONNX_FILE, THREADS),
        "ONNX Runtime, int8": onnx_network(folder / INT8_FILE, THREADS),
    }


def compare_networks(
    networks: dict[str, Network], inputs: torch.Tensor, targets: np.ndarray
) -> None:
    """Print images per second, the ratio to the first one, the AUC and the difference of logits."""
    seconds: dict[str, list[float]] = {name: [] for name in networks}
    logits = {}
    for name, network in networks.items():
        logits[name] = torch.cat([network(batch) for batch in inputs.split(BATCH_SIZE)]).numpy()
    for _ in range(ROUNDS):
        for name, network in networks.items():
            start = time.perf_counter()
            for batch in inputs.split(BATCH_SIZE):
                network(batch)
            seconds[name].append(time.perf_counter() - start)
    first = next(iter(networks))
    side = inputs.shape[-1]
    print(f"{len(inputs)} images of {side} px, {BATCH_SIZE} at a time, {THREADS} threads\n")
    print("| network | images/s: median (range) | times eager | AUC | logits differ by at most |")
    print("|---|---|---|---|---|")
    for name, found in seconds.items():
        low, *_, high = sorted(len(inputs) / one for one in found)
        rate = f"{len(inputs) / np.median(found):.0f} ({low:.0f} to {high:.0f})"
        ratio = np.median(seconds[first]) / np.median(found)
        difference = np.abs(logits[name] - logits[first]).max()
        auc = roc_auc_score(targets, logits[name])
        print(f"| {name} | {rate} | {ratio:.2f} | {auc:.4f} | {difference:.1e} |", flush=True)


# ---------------------------------------------------------------------------------------------
# The server


@contextmanager
def server(model: Path) -> Iterator[tuple[str, psutil.Process]]:
    """Start the server; yields its address and its process."""
    command = [sys.executable, "-m", "stages.tools.serve", "--port", "0", "--model", str(model)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout
    try:
        yield process.stdout.readline().split()[0], psutil.Process(process.pid)
    finally:
        process.terminate()
        process.wait()


def ask_server(model: Path, files: list[Path], clients: int, count: int) -> None:
    """Print rate, waiting times and memory for `count` requests by so many clients at once."""
    contents = [file.read_bytes() for file in files]
    kept, memory = local(), []
    with server(model) as (address, process), ThreadPoolExecutor(clients) as pool:

        def ask(number: int) -> tuple[float, int]:
            if not hasattr(kept, "session"):
                kept.session = requests.Session()
            upload = {"file": ("a.jpg", contents[number % len(contents)])}
            start = time.perf_counter()
            answer = kept.session.post(f"{address}/detect", files=upload, timeout=120)
            if number % 50 == 0:
                memory.append(process.memory_info().rss / 2**20)
            return time.perf_counter() - start, answer.status_code

        list(pool.map(ask, range(200)))  # caches fill
        memory.clear()
        start = time.perf_counter()
        answers = list(pool.map(ask, range(count)))
        seconds = time.perf_counter() - start
    waited = np.array([one for one, _ in answers])
    middle, late = 1e3 * np.quantile(waited, [0.5, 0.95])
    codes = dict(Counter(code for _, code in answers))
    print(
        f"{clients} clients: {count / seconds:.1f} requests/s, p50 {middle:.0f} ms, p95 "
        f"{late:.0f} ms, answers {codes}, memory {memory[0]:.0f} MB at first, {memory[-1]:.0f} MB "
        f"at last, {max(memory):.0f} MB at most",
        flush=True,
    )


if __name__ == "__main__":
    main()

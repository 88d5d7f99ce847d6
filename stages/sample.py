"""Generate the embedded data set: drawn faces, some manipulated, in the competition's layout.

params.yaml: sample  ->  data/raw/sample
Run: python -m stages.sample

A real is a drawn portrait as a simple camera takes it: lens blur, sensor noise, JPEG. A fake is
such a photograph manipulated in one of four ways before it becomes a JPEG. The traces (a seam,
another colour, resampled noise) are local. Blur, noise and JPEG quality are drawn alike for both
classes, so file size, header and brightness do not tell them apart. The sample is good for trying
the pipeline; its figures say nothing about the detection of real deepfakes.
"""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import Field

from stages.lib import paths
from stages.lib.core.files import atomic_folder, write_text
from stages.lib.core.labels import FAKE, REAL
from stages.lib.core.params import Seed, StageParams, load_params
from stages.lib.drawing.photograph import FAMILIES, photograph
from stages.lib.drawing.portrait import draw_person
from stages.lib.progress import progress_bar
from stages.lib.running import run_stage

FOLDERS = {"train": "phase1/trainset", "val": "phase1/valset", "test": "phase2/testset1_seen"}
IMAGES_PER_PERSON = 5
MOST_IMAGES = 1_000_000


class SampleParams(StageParams):
    """Section `sample`."""

    num_train: Annotated[int, Field(ge=20, le=MOST_IMAGES)]
    num_val: Annotated[int, Field(ge=20, le=MOST_IMAGES)]
    num_test: Annotated[int, Field(ge=1, le=MOST_IMAGES)]
    image_size: Annotated[int, Field(ge=48, le=512)]
    fake_share: Annotated[float, Field(gt=0, lt=1)]
    seed: Seed


def main() -> None:
    """Write all three sets, or none."""
    params = load_params("sample", SampleParams)
    counts = {"train": params.num_train, "val": params.num_val, "test": params.num_test}
    with atomic_folder(paths.SAMPLE) as root, progress_bar("sample", sum(counts.values())) as bar:
        for number, (name, folder) in enumerate(FOLDERS.items()):
            write_set(root / folder, name, counts[name], number, params, bar.update)
    print(f"{paths.SAMPLE}: {sum(counts.values())} drawn images")


def write_set(
    folder: Path, name: str, count: int, number: int, params: SampleParams, done: Callable[[], Any]
) -> None:
    """Write the images of one set and its list; the list of the test set has no labels."""
    folder.mkdir(parents=True)
    is_labelled = name != "test"
    rows = []
    for index in range(count):
        random = np.random.default_rng([params.seed, number, index])
        seed_of_person = [params.seed, number, index // IMAGES_PER_PERSON, 1]
        person = draw_person(np.random.default_rng(seed_of_person))
        family = family_of(index, params.fake_share)
        file = hashlib.md5(f"{params.seed}/{number}/{index}".encode()).hexdigest() + ".jpg"
        (folder / file).write_bytes(photograph(person, family, params.image_size, random))
        rows.append(f"{file},{FAKE if family else REAL},{family}" if is_labelled else file)
        done()
    header, kind = ("img_name,target,family", "label") if is_labelled else ("img_name", "nolabel")
    list_file = folder.with_name(f"{folder.name}_{kind}.txt")
    write_text(list_file, "\n".join([header, *sorted(rows)]) + "\n")


def family_of(index: int, fake_share: float) -> str:
    """Spread the fakes evenly over the images, and the families evenly over the fakes.

    So the images of one person are of both classes, as originals and their fakes are.
    """
    before, after = int(index * fake_share), int((index + 1) * fake_share)
    return list(FAMILIES)[before % len(FAMILIES)] if after > before else ""


if __name__ == "__main__":
    run_stage(main)

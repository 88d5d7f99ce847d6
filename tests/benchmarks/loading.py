"""Time one core turning JPEG files into the model's input: the baseline, decoders and ours.

Run: python -m tests.benchmarks.loading [--images 40] [--repeats 5]   (from the repository's root)

The baseline's image is a normalised float tensor (Pillow, torchvision's transforms); all others end
as uint8 (3, 256, 256), for we normalise on the device. `draft` and `scaled` decode at a fraction of
the size where the image is at least twice as large as the input: other pixels, by about one level.
"""

from collections.abc import Callable
from functools import partial
from io import BytesIO
from pathlib import Path

import numpy as np
import pandas as pd
import simplejpeg
import torch
from PIL import Image
from torchvision.io import ImageReadMode, decode_jpeg

from stages.lib.detector.dataset import LabelledImages
from stages.lib.detector.preprocessing import Preprocessing, resize
from stages.lib.training.decode_cache import decode_ahead
from tests.benchmarks.notebook import IMAGE_SIZE, MEAN, STD, FileImages, draw_photographs, pack
from tests.benchmarks.race import Rates, race, run_races

EXACT = Preprocessing(image_size=IMAGE_SIZE, interpolation="bilinear", mean=MEAN, std=STD)
SCALED = EXACT.model_copy(update={"scaled_decoding": True})


def with_pillow(content: bytes) -> torch.Tensor:
    """Decode and resize with Pillow."""
    with Image.open(BytesIO(content)) as image:
        small = image.convert("RGB").resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BILINEAR)
    return torch.from_numpy(np.array(small)).permute(2, 0, 1)


def with_draft(content: bytes) -> torch.Tensor:
    """Let Pillow decode at a fraction of the size."""
    with Image.open(BytesIO(content)) as image:
        image.draft("RGB", (IMAGE_SIZE, IMAGE_SIZE))
        small = image.resize((IMAGE_SIZE, IMAGE_SIZE), Image.Resampling.BILINEAR)
    return torch.from_numpy(np.array(small)).permute(2, 0, 1)


def with_simplejpeg(content: bytes) -> torch.Tensor:
    """Decode with libjpeg-turbo by simplejpeg, resize as we do."""
    return resize(torch.from_numpy(simplejpeg.decode_jpeg(content)).permute(2, 0, 1), EXACT)


DECODERS: dict[str, Callable[[bytes], torch.Tensor]] = {
    "Pillow": with_pillow,
    "Pillow, draft": with_draft,
    "simplejpeg": with_simplejpeg,
}


def with_nvjpeg(contents: list[bytes]) -> None:
    """Decode all at once on the GPU, resize there."""
    encoded = [torch.frombuffer(bytearray(content), dtype=torch.uint8) for content in contents]
    for image in decode_jpeg(encoded, mode=ImageReadMode.RGB, device="cuda"):
        resize(image, EXACT)
    torch.cuda.synchronize()


def ours(folder: Path, table: pd.DataFrame) -> dict[str, LabelledImages]:
    """Return what stages.train reads: a pack, scaled decoding, and images decoded ahead."""
    labels = pack(folder, table)
    sources = {
        "ours": LabelledImages(labels, folder / "packed", EXACT),
        "ours, scaled_decoding": LabelledImages(labels, folder / "packed", SCALED),
        "ours, decoded_gb": LabelledImages(labels, folder / "packed", EXACT),
    }
    decode_ahead({"train": sources["ours, decoded_gb"]}, limit_gb=1, num_workers=0)
    return sources


def compare(folder: Path, num_images: int, repeats: int, side: int) -> Rates:
    """Return images per second of each repetition, all on one thread."""
    photographs = folder / "photographs"
    table = draw_photographs(photographs, num_images, side)
    contents = [(photographs / name).read_bytes() for name in table["img_name"]]
    files = FileImages(photographs, table)
    runs: dict[str, Callable[[], object]] = {
        "baseline": lambda: [files[i] for i in range(num_images)] and None
    }
    for name, load in DECODERS.items():
        runs[name] = lambda load=load: [load(content) for content in contents] and None
    for name, images in ours(folder, table).items():
        runs[name] = lambda images=images: [images[i] for i in range(num_images)] and None
    if torch.cuda.is_available():
        runs["nvJPEG"] = lambda: with_nvjpeg(contents)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    rates = race(runs, num_images, repeats)
    torch.set_num_threads(threads)
    return rates


if __name__ == "__main__":
    sides = {f"loading {side} px": partial(compare, side=side) for side in (512, 600)}
    run_races(__doc__, 40, sides)

"""Time one core turning JPEG files into the model's input: the baseline, decoders and ours.

Run: python -m tests.benchmarks.loading [--images 40] [--repeats 5]   (from the repository's root)

The baseline's image is a normalised float tensor (Pillow, torchvision's transforms); all others end
as uint8 (3, 256, 256), for we normalise on the device. `draft` and `scaled` decode at a fraction of
the size where the image is at least twice as large as the input: other pixels, by about one level.
"""

from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
import simplejpeg
import torch
from PIL import Image

from stages.lib.images import Preprocessing, decode, resize, to_input
from tests.benchmarks.notebook import IMAGE_SIZE, MEAN, STD, FileImages, draw_photographs
from tests.benchmarks.race import Rates, arguments_of, race, run_race

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


CONTESTANTS: dict[str, Callable[[bytes], torch.Tensor]] = {
    "Pillow": with_pillow,
    "Pillow, draft": with_draft,
    "simplejpeg": with_simplejpeg,
    "ours": lambda content: to_input(decode(content, EXACT), EXACT),
    "ours, scaled_decoding": lambda content: to_input(decode(content, SCALED), SCALED),
}


def compare(folder: Path, num_images: int, repeats: int, side: int) -> Rates:
    """Return images per second of each repetition, all on one thread."""
    photographs = folder / f"photographs-{side}"
    table = draw_photographs(photographs, num_images, side)
    contents = [(photographs / name).read_bytes() for name in table["img_name"]]
    files = FileImages(photographs, table)
    runs = {"baseline": lambda: [files[i] for i in range(num_images)] and None}
    for name, load in CONTESTANTS.items():
        runs[name] = lambda load=load: [load(content) for content in contents] and None
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    rates = race(runs, num_images, repeats)
    torch.set_num_threads(threads)
    return rates


def main() -> None:
    """Print the rates for 512 and 600 px."""
    given = arguments_of(__doc__, num_images=40)
    for side in (512, 600):
        run_race(
            f"loading {side} px",
            lambda folder, side=side: compare(folder, given.images, given.repeats, side),
        )


if __name__ == "__main__":
    main()

"""Generate the embedded data set: drawn faces, some manipulated, in the competition's layout.

params.yaml: sample  ->  data/raw/sample
Run: python -m stages.sample

A real is a drawn portrait as a simple camera would take it: lens blur, sensor noise, JPEG. A fake
is such a photograph manipulated in one of four ways before it becomes a JPEG; its traces (a seam,
another colour, noise that was resampled) are local, while blur, noise and JPEG quality are drawn
alike for both classes, so that neither file size nor header nor brightness tells them apart.
Good for trying the pipeline; figures from it say nothing about detecting real deepfakes.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path
from typing import Annotated

import numpy as np
from PIL import Image, ImageDraw
from pydantic import Field
from scipy import ndimage

from stages.lib.competition import FAKE, REAL, SETS
from stages.lib.errors import run_stage
from stages.lib.files import fresh_folder, write_text
from stages.lib.params import SAMPLE_ROOT, StageParams, load_params
from stages.lib.progress import progress_bar

FOLDERS = {"train": "phase1/trainset", "val": "phase1/valset", "test": "phase2/testset1_seen"}
SUPERSAMPLING = 4
SKINS = [(236, 200, 178), (222, 178, 148), (196, 146, 112), (150, 104, 76), (104, 70, 52)]
HAIRS = [(28, 22, 20), (74, 48, 30), (134, 92, 50), (196, 160, 96), (140, 136, 134), (110, 40, 24)]
IRISES = [(70, 44, 26), (64, 92, 128), (72, 104, 66), (40, 30, 26)]

Picture = np.ndarray  # float64 (S, S, 3), 0 to 255
Random = np.random.Generator


class SampleParams(StageParams):
    """Section `sample`."""

    num_train: Annotated[int, Field(ge=20)]
    num_val: Annotated[int, Field(ge=20)]
    num_test: Annotated[int, Field(ge=1)]
    image_size: Annotated[int, Field(ge=48, le=512)]
    fake_share: Annotated[float, Field(gt=0, lt=1)]
    seed: Annotated[int, Field(ge=0)]


def main() -> None:
    """Write all three sets, or none."""
    params = load_params("sample", SampleParams)
    counts = {"train": params.num_train, "val": params.num_val, "test": params.num_test}
    with fresh_folder(SAMPLE_ROOT) as root, progress_bar("sample", sum(counts.values())) as bar:
        for number, name in enumerate(SETS):
            write_set(root / FOLDERS[name], counts[name], number, params, bar.update)
    print(f"{SAMPLE_ROOT}: {sum(counts.values())} drawn pictures")


def write_set(
    folder: Path, count: int, number: int, params: SampleParams, done: Callable[[], None]
) -> None:
    """Write one set's images and its list; the test set's list has no labels."""
    folder.mkdir(parents=True)
    rows = []
    for index in range(count):
        random = np.random.default_rng([params.seed, number, index])
        person = draw_person(np.random.default_rng([params.seed, number, index // 5, 1]))
        family = family_of(index, params.fake_share)
        name = hashlib.md5(f"{params.seed}/{number}/{index}".encode()).hexdigest() + ".jpg"
        (folder / name).write_bytes(photograph(person, family, params.image_size, random))
        label = "" if number == SETS.index("test") else f",{FAKE if family else REAL},{family}"
        rows.append(name + label)
        done()
    header = "img_name" if number == SETS.index("test") else "img_name,target,family"
    kind = "nolabel" if number == SETS.index("test") else "label"
    list_file = folder.with_name(f"{folder.name}_{kind}.txt")
    write_text(list_file, "\n".join([header, *sorted(rows)]) + "\n")


def family_of(index: int, fake_share: float) -> str:
    """Spread the fakes evenly over the pictures, and the families evenly over the fakes.

    So the five pictures of one person are of both classes, as originals and their fakes are.
    """
    before, after = int(index * fake_share), int((index + 1) * fake_share)
    return list(FAMILIES)[before % len(FAMILIES)] if after > before else ""


# ---------------------------------------------------------------------------------------------
# A person and their portrait


@dataclass(frozen=True)
class Person:
    """What a portrait shows; lengths and places are shares of the image's side."""

    skin: Picture
    hair: Picture
    iris: Picture
    backdrop: Picture  # two colours
    center: Picture  # x, y
    face: Picture  # half axes
    hair_length: float
    eye_gap: float
    eye_size: float
    brow_tilt: float
    mouth_width: float
    mouth_open: float
    nose_width: float
    light: Picture  # direction and strength


def draw_person(random: Random) -> Person:
    """Draw a person's features at random."""
    return Person(
        skin=np.array(SKINS[random.integers(len(SKINS))]) * random.uniform(0.9, 1.08),
        hair=np.array(HAIRS[random.integers(len(HAIRS))]) * random.uniform(0.8, 1.2),
        iris=np.array(IRISES[random.integers(len(IRISES))], dtype=float),
        backdrop=random.uniform(40, 220, (2, 3)),
        center=np.array([0.5, 0.53]) + random.uniform(-0.04, 0.04, 2),
        face=np.array([random.uniform(0.24, 0.30), random.uniform(0.32, 0.38)]),
        hair_length=random.uniform(0.0, 0.5),
        eye_gap=random.uniform(0.10, 0.13),
        eye_size=random.uniform(0.032, 0.045),
        brow_tilt=random.uniform(-0.02, 0.02),
        mouth_width=random.uniform(0.07, 0.11),
        mouth_open=random.uniform(0.008, 0.03),
        nose_width=random.uniform(0.025, 0.045),
        light=random.uniform(-0.25, 0.25, 2),
    )


def portrait(person: Person, size: int) -> Picture:
    """Draw a person without any camera's traces."""
    large = size * SUPERSAMPLING
    ramp = np.linspace(0, 1, large)[:, None, None]
    backdrop = person.backdrop[0] * (1 - ramp) + person.backdrop[1] * ramp
    image = Image.fromarray(np.repeat(backdrop, large, axis=1).astype(np.uint8))
    pen = Pen(ImageDraw.Draw(image), person, large)
    pen.body_and_hair()
    pen.eyes()
    pen.nose_and_mouth()
    picture = np.asarray(image.resize((size, size), Image.Resampling.BOX), dtype=float)
    y, x = np.mgrid[-1 : 1 : size * 1j, -1 : 1 : size * 1j]
    return picture * (1 + person.light[0] * x + person.light[1] * y)[..., None]


class Pen:
    """Draws a person's parts on a canvas of `side` pixels."""

    def __init__(self, draw: ImageDraw.ImageDraw, person: Person, side: int) -> None:
        self.draw, self.person, self.side = draw, person, side

    def ellipse(self, x: float, y: float, rx: float, ry: float, color: Picture) -> None:
        """Fill an ellipse given relative to the face's centre, in shares of the side."""
        cx, cy = (self.person.center + np.array([x, y])) * self.side
        rx, ry = rx * self.side, ry * self.side
        fill = tuple(int(value) for value in np.clip(color, 0, 255))
        self.draw.ellipse((cx - rx, cy - ry, cx + rx, cy + ry), fill=fill)

    def body_and_hair(self) -> None:
        """Draw hair, shoulders, neck, ears, face and fringe."""
        p, (rx, ry) = self.person, self.person.face
        self.ellipse(0, -0.06 + p.hair_length / 4, rx * 1.18, ry * (1.08 + p.hair_length), p.hair)
        self.ellipse(0, 0.62, 0.46, 0.24, p.backdrop[0] * 0.6)
        self.ellipse(0, 0.36, 0.11, 0.16, p.skin * 0.82)
        for side in (-1, 1):
            self.ellipse(side * rx, 0, 0.03, 0.06, p.skin * 0.88)
        self.ellipse(0, 0, rx, ry, p.skin)
        self.ellipse(0, -ry * 0.93, rx * 0.85, ry * 0.3, p.hair)
        for side in (-1, 1):
            self.ellipse(side * rx * 0.55, 0.10, 0.06, 0.045, p.skin * [1.03, 0.94, 0.93])

    def eyes(self) -> None:
        """Draw brows, eyes, irises and pupils."""
        p = self.person
        for side in (-1, 1):
            x, y = side * p.eye_gap, -0.06
            brow = y - 0.065 + side * p.brow_tilt
            self.ellipse(x, brow, p.eye_size * 1.3, 0.011, p.hair * 0.8)
            self.ellipse(x, y, p.eye_size * 1.25, p.eye_size * 0.75, np.array([240, 238, 232]))
            self.ellipse(x, y, p.eye_size * 0.62, p.eye_size * 0.62, p.iris)
            self.ellipse(x, y, p.eye_size * 0.3, p.eye_size * 0.3, np.array([16, 14, 14]))

    def nose_and_mouth(self) -> None:
        """Draw the nose's shadow, the lips and what an open mouth shows."""
        p = self.person
        self.ellipse(0.008, 0.05, p.nose_width * 0.55, 0.07, p.skin * 0.93)
        self.ellipse(0, 0.105, p.nose_width, 0.02, p.skin * 0.84)
        lips = p.skin * [0.9, 0.62, 0.62]
        self.ellipse(0, 0.19, p.mouth_width, p.mouth_open + 0.016, lips)
        self.ellipse(0, 0.19, p.mouth_width * 0.8, p.mouth_open, np.array([70, 26, 28]))


# ---------------------------------------------------------------------------------------------
# A photograph and its manipulations


@dataclass(frozen=True)
class Camera:
    """What one photograph was taken with; both classes draw it alike."""

    blur: float  # sigma, pixels
    noise: float  # sigma, levels of 255
    quality: int  # JPEG

    def take(self, picture: Picture, random: Random) -> Picture:
        """Blur a picture, give the skin some texture and add the sensor's noise."""
        blurred = ndimage.gaussian_filter(picture, (self.blur, self.blur, 0))
        texture = ndimage.gaussian_filter(random.normal(0, 18, picture.shape[:2]), 2.5)
        return blurred + texture[..., None] + random.normal(0, self.noise, picture.shape)


def photograph(person: Person, family: str, size: int, random: Random) -> bytes:
    """Take a person's picture, manipulate it where family says so, and return JPEG bytes."""
    moment = replace(
        person,
        light=person.light + random.uniform(-0.05, 0.05, 2),
        center=person.center + random.uniform(-0.01, 0.01, 2),
    )
    camera = Camera(
        random.uniform(0.4, 0.8), random.uniform(1.5, 3.0), int(random.integers(75, 96))
    )
    picture = camera.take(portrait(moment, size), random)
    if family:
        picture = FAMILIES[family](picture, moment, camera, random)
    buffer = BytesIO()
    image = Image.fromarray(np.clip(picture.round(), 0, 255).astype(np.uint8))
    image.save(buffer, "JPEG", quality=camera.quality)
    return buffer.getvalue()


def face_swap(picture: Picture, person: Person, camera: Camera, random: Random) -> Picture:
    """Lay another person's face, rescaled and nearly of the same colour, over the inner face."""
    size = len(picture)
    other = replace(draw_person(random), skin=person.skin, center=person.center, face=person.face,
                    light=person.light, backdrop=person.backdrop)  # fmt: skip
    donor = resample(camera.take(portrait(other, size), random), random.uniform(1.3, 1.6))
    tint = random.choice([-1, 1], 3) * random.uniform(22, 36, 3)
    mask = region(person, size, (0, 0.03), person.face * 0.78, random.uniform(0.5, 1.0))
    return picture * (1 - mask) + (donor + tint) * mask


def reenactment(picture: Picture, person: Person, camera: Camera, random: Random) -> Picture:
    """Warp the face smoothly, as if the head had moved; the noise is resampled with it."""
    size = len(picture)
    mask = region(person, size, (0, 0), person.face * 0.95, 0.8)
    shift = random.choice([-1, 1], 2) * random.uniform(0.06, 0.09, 2) * size
    grid = np.mgrid[0:size, 0:size].astype(float)
    grid += shift[:, None, None] * mask[..., 0]
    channels = [ndimage.map_coordinates(picture[..., c], grid, order=1, mode="nearest")
                for c in range(3)]  # fmt: skip
    return np.stack(channels, axis=-1)


def talking_face(picture: Picture, person: Person, camera: Camera, random: Random) -> Picture:
    """Synthesise the mouth's surroundings anew at half the resolution, opened otherwise."""
    size = len(picture)
    speaking = replace(person, mouth_open=random.uniform(0.02, 0.06))
    mouth = resample(camera.take(portrait(speaking, size), random), 3.0)
    tint = random.choice([-1, 1], 3) * random.uniform(20, 34, 3)
    mask = region(person, size, (0, 0.17), np.array([0.18, 0.14]), random.uniform(0.5, 1.0))
    return picture * (1 - mask) + (mouth + tint) * mask


def attribute_edit(picture: Picture, person: Person, camera: Camera, random: Random) -> Picture:
    """Edit hair, eyes or skin with a generator that leaves a grid of upsampling behind."""
    size = len(picture)
    places = [((0, -0.30), (0.22, 0.10)), ((0, -0.07), (0.21, 0.09)), ((0, 0.05), (0.2, 0.2))]
    place, axes = places[random.integers(len(places))]
    smooth = ndimage.gaussian_filter(picture, (0.8, 0.8, 0))
    y, x = np.mgrid[0:size, 0:size]
    grid = ((x % 2) * 2 - 1) * ((y % 2) * 2 - 1) * random.uniform(11, 18)
    edited = smooth + random.uniform(-14, 14, 3) + grid[..., None]
    mask = region(person, size, place, np.array(axes), random.uniform(0.6, 2.0))
    return picture * (1 - mask) + edited * mask


FAMILIES = {
    "face_swap": face_swap,
    "reenactment": reenactment,
    "talking_face": talking_face,
    "attribute_edit": attribute_edit,
}


def region(
    person: Person, size: int, offset: tuple[float, float], axes: Picture, feather: float
) -> Picture:
    """Return a mask (S, S, 1), 0 to 1: an ellipse near the face with a soft edge in pixels."""
    center = (person.center + offset) * size
    y, x = np.mgrid[0:size, 0:size]
    inside = ((x - center[0]) / (axes[0] * size)) ** 2 + ((y - center[1]) / (axes[1] * size)) ** 2
    return ndimage.gaussian_filter((inside < 1).astype(float), feather)[..., None]


def resample(picture: Picture, factor: float) -> Picture:
    """Shrink by the factor and enlarge again, which correlates the noise of neighbours."""
    size = len(picture)
    image = Image.fromarray(np.clip(picture, 0, 255).astype(np.uint8))
    small = image.resize((round(size / factor),) * 2, Image.Resampling.BICUBIC)
    return np.asarray(small.resize((size, size), Image.Resampling.BICUBIC), dtype=float)


if __name__ == "__main__":
    run_stage(main)

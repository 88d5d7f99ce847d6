"""The four kinds of manipulation of a photograph of a drawn person."""

from dataclasses import replace

import numpy as np
from PIL import Image
from scipy import ndimage

from stages.lib.drawing.camera import Camera
from stages.lib.drawing.portrait import Person, Picture, Random, draw_person, portrait


def face_swap(picture: Picture, person: Person, camera: Camera, random: Random) -> Picture:
    """Paste the rescaled face of another person, in nearly the same colour, over the inner face."""
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
    """Replace the region of the mouth by one of low resolution with another opening."""
    size = len(picture)
    speaking = replace(person, mouth_open=random.uniform(0.02, 0.06))
    mouth = resample(camera.take(portrait(speaking, size), random), 3.0)
    tint = random.choice([-1, 1], 3) * random.uniform(20, 34, 3)
    mask = region(person, size, (0, 0.17), np.array([0.18, 0.14]), random.uniform(0.5, 1.0))
    return picture * (1 - mask) + (mouth + tint) * mask


def attribute_edit(picture: Picture, person: Person, camera: Camera, random: Random) -> Picture:
    """Edit hair, eyes or skin like a generator that leaves an upsampling grid."""
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

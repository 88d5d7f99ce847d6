"""A photograph of a drawn person as a JPEG file: real, or manipulated in one of four ways."""

from dataclasses import dataclass, replace
from io import BytesIO

import numpy as np
from PIL import Image
from scipy import ndimage

from stages.lib.drawing.portrait import Person, Pixels, Random, draw_person, portrait


@dataclass(frozen=True)
class Camera:
    """What one photograph is taken with; it is drawn alike for both classes."""

    blur: float  # sigma, pixels
    noise: float  # sigma, levels of 255
    quality: int  # JPEG

    def take(self, pixels: Pixels, random: Random) -> Pixels:
        """Blur an image, give the skin some texture and add the noise of the sensor."""
        blurred = ndimage.gaussian_filter(pixels, (self.blur, self.blur, 0))
        texture = ndimage.gaussian_filter(random.normal(0, 18, pixels.shape[:2]), 2.5)
        return blurred + texture[..., None] + random.normal(0, self.noise, pixels.shape)


def photograph(person: Person, family: str, size: int, random: Random) -> bytes:
    """Take a photograph of a person, manipulate it if family is not "", and return JPEG bytes."""
    moment = replace(
        person,
        light=person.light + random.uniform(-0.05, 0.05, 2),
        center=person.center + random.uniform(-0.01, 0.01, 2),
    )
    camera = Camera(
        random.uniform(0.4, 0.8), random.uniform(1.5, 3.0), int(random.integers(75, 96))
    )
    pixels = camera.take(portrait(moment, size), random)
    if family:
        pixels = FAMILIES[family](pixels, moment, camera, random)
    buffer = BytesIO()
    image = Image.fromarray(np.clip(pixels.round(), 0, 255).astype(np.uint8))
    image.save(buffer, "JPEG", quality=camera.quality)
    return buffer.getvalue()


def face_swap(pixels: Pixels, person: Person, camera: Camera, random: Random) -> Pixels:
    """Paste the rescaled face of another person, in nearly the same colour, over the inner face."""
    size = len(pixels)
    other = replace(
        draw_person(random),
        skin=person.skin,
        center=person.center,
        face=person.face,
        light=person.light,
        backdrop=person.backdrop,
    )
    donor = resample(camera.take(portrait(other, size), random), random.uniform(1.3, 1.6))
    tint = random.choice([-1, 1], 3) * random.uniform(22, 36, 3)
    mask = region(person, size, (0, 0.03), person.face * 0.78, random.uniform(0.5, 1.0))
    return pixels * (1 - mask) + (donor + tint) * mask


def reenactment(pixels: Pixels, person: Person, camera: Camera, random: Random) -> Pixels:
    """Warp the face smoothly, as if the head had moved; the noise is resampled with it."""
    size = len(pixels)
    mask = region(person, size, (0, 0), person.face * 0.95, 0.8)
    shift = random.choice([-1, 1], 2) * random.uniform(0.06, 0.09, 2) * size
    grid = np.mgrid[0:size, 0:size].astype(float)
    grid += shift[:, None, None] * mask[..., 0]
    warped = [
        ndimage.map_coordinates(pixels[..., channel], grid, order=1, mode="nearest")
        for channel in range(3)
    ]
    return np.stack(warped, axis=-1)


def talking_face(pixels: Pixels, person: Person, camera: Camera, random: Random) -> Pixels:
    """Replace the region of the mouth by one of low resolution with another opening."""
    size = len(pixels)
    speaking = replace(person, mouth_open=random.uniform(0.02, 0.06))
    mouth = resample(camera.take(portrait(speaking, size), random), 3.0)
    tint = random.choice([-1, 1], 3) * random.uniform(20, 34, 3)
    mask = region(person, size, (0, 0.17), np.array([0.18, 0.14]), random.uniform(0.5, 1.0))
    return pixels * (1 - mask) + (mouth + tint) * mask


def attribute_edit(pixels: Pixels, person: Person, camera: Camera, random: Random) -> Pixels:
    """Edit hair, eyes or skin like a generator that leaves an upsampling grid."""
    size = len(pixels)
    places = [((0, -0.30), (0.22, 0.10)), ((0, -0.07), (0.21, 0.09)), ((0, 0.05), (0.2, 0.2))]
    place, axes = places[random.integers(len(places))]
    smooth = ndimage.gaussian_filter(pixels, (0.8, 0.8, 0))
    y, x = np.mgrid[0:size, 0:size]
    grid = ((x % 2) * 2 - 1) * ((y % 2) * 2 - 1) * random.uniform(11, 18)
    edited = smooth + random.uniform(-14, 14, 3) + grid[..., None]
    mask = region(person, size, place, np.array(axes), random.uniform(0.6, 2.0))
    return pixels * (1 - mask) + edited * mask


FAMILIES = {
    "face_swap": face_swap,
    "reenactment": reenactment,
    "talking_face": talking_face,
    "attribute_edit": attribute_edit,
}


def region(
    person: Person, size: int, offset: tuple[float, float], axes: Pixels, feather: float
) -> Pixels:
    """Return a mask (S, S, 1), 0 to 1: an ellipse near the face with a soft edge in pixels."""
    center = (person.center + offset) * size
    y, x = np.mgrid[0:size, 0:size]
    inside = ((x - center[0]) / (axes[0] * size)) ** 2 + ((y - center[1]) / (axes[1] * size)) ** 2
    return ndimage.gaussian_filter((inside < 1).astype(float), feather)[..., None]


def resample(pixels: Pixels, factor: float) -> Pixels:
    """Shrink by the factor and enlarge again, which correlates the noise of neighbours."""
    size = len(pixels)
    image = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
    small = image.resize((round(size / factor),) * 2, Image.Resampling.BICUBIC)
    return np.asarray(small.resize((size, size), Image.Resampling.BICUBIC), dtype=float)

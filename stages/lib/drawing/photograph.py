"""A photograph of a drawn person, real or manipulated, as a JPEG file."""

from dataclasses import replace
from io import BytesIO

import numpy as np
from PIL import Image

from stages.lib.drawing.camera import Camera
from stages.lib.drawing.manipulations import FAMILIES
from stages.lib.drawing.portrait import Person, Random, portrait


def photograph(person: Person, family: str, size: int, random: Random) -> bytes:
    """Take the picture of a person, manipulate it if family is not "", and return JPEG bytes."""
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

"""A drawn person and their portrait, without any traces of a camera."""

from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

SUPERSAMPLING = 4
SKINS = [(236, 200, 178), (222, 178, 148), (196, 146, 112), (150, 104, 76), (104, 70, 52)]
HAIRS = [(28, 22, 20), (74, 48, 30), (134, 92, 50), (196, 160, 96), (140, 136, 134), (110, 40, 24)]
IRISES = [(70, 44, 26), (64, 92, 128), (72, 104, 66), (40, 30, 26)]

Pixels = np.ndarray  # float64 (S, S, 3), 0 to 255
Random = np.random.Generator


@dataclass(frozen=True)
class Person:
    """What a portrait shows; lengths and places are fractions of the side of the image."""

    skin: Pixels
    hair: Pixels
    iris: Pixels
    backdrop: Pixels  # two colours
    center: Pixels  # x, y
    face: Pixels  # half axes
    hair_length: float
    eye_gap: float
    eye_size: float
    brow_tilt: float
    mouth_width: float
    mouth_open: float
    nose_width: float
    light: Pixels  # direction and strength


def draw_person(random: Random) -> Person:
    """Draw the features of a person at random."""
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


def portrait(person: Person, size: int) -> Pixels:
    """Return the portrait of a person."""
    large = size * SUPERSAMPLING
    ramp = np.linspace(0, 1, large)[:, None, None]
    backdrop = person.backdrop[0] * (1 - ramp) + person.backdrop[1] * ramp
    image = Image.fromarray(np.repeat(backdrop, large, axis=1).astype(np.uint8))
    pen = Pen(ImageDraw.Draw(image), person, large)
    pen.body_and_hair()
    pen.eyes()
    pen.nose_and_mouth()
    pixels = np.asarray(image.resize((size, size), Image.Resampling.BOX), dtype=float)
    y, x = np.mgrid[-1 : 1 : size * 1j, -1 : 1 : size * 1j]
    return pixels * (1 + person.light[0] * x + person.light[1] * y)[..., None]


class Pen:
    """Draws the parts of a person on a canvas of `side` pixels."""

    def __init__(self, draw: ImageDraw.ImageDraw, person: Person, side: int) -> None:
        self.draw, self.person, self.side = draw, person, side

    def ellipse(self, x: float, y: float, rx: float, ry: float, color: Pixels) -> None:
        """Fill an ellipse given relative to the centre of the face, in fractions of the side."""
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
        """Draw the shadow of the nose, the lips and the open mouth."""
        p = self.person
        self.ellipse(0.008, 0.05, p.nose_width * 0.55, 0.07, p.skin * 0.93)
        self.ellipse(0, 0.105, p.nose_width, 0.02, p.skin * 0.84)
        lips = p.skin * [0.9, 0.62, 0.62]
        self.ellipse(0, 0.19, p.mouth_width, p.mouth_open + 0.016, lips)
        self.ellipse(0, 0.19, p.mouth_width * 0.8, p.mouth_open, np.array([70, 26, 28]))

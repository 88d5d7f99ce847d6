"""What a photograph of a drawn person is taken with."""

from dataclasses import dataclass

from scipy import ndimage

from stages.lib.drawing.portrait import Picture, Random


@dataclass(frozen=True)
class Camera:
    """What one photograph is taken with; it is drawn alike for both classes."""

    blur: float  # sigma, pixels
    noise: float  # sigma, levels of 255
    quality: int  # JPEG

    def take(self, picture: Picture, random: Random) -> Picture:
        """Blur a picture, give the skin some texture and add the noise of the sensor."""
        blurred = ndimage.gaussian_filter(picture, (self.blur, self.blur, 0))
        texture = ndimage.gaussian_filter(random.normal(0, 18, picture.shape[:2]), 2.5)
        return blurred + texture[..., None] + random.normal(0, self.noise, picture.shape)

"""From bytes to pixels, or the reason why not. Bombs are refused by their header. Knows nothing of marks or credentials."""

from __future__ import annotations

from platemark.errors import DamagedImageError, ImageError
from platemark.imaging import Decoded, decode, probe

ALWAYS_PIXELS = 4 << 20  # decoded whatever the size of the file
PIXELS_A_BYTE = 400  # above that, a file that claims more holds next to nothing: deflate reaches 1032:1, on samples of one colour


def decoded(data: bytes) -> tuple[Decoded | None, DamagedImageError | None]:
    """The picture, or what is damaged in it. Raises `ImageError` for what is no picture of a known format, too big, or a bomb."""
    try:
        height, width = probe(data).size
        if height * width > max(ALWAYS_PIXELS, PIXELS_A_BYTE * len(data)):
            raise ImageError(
                f"the file claims {width}x{height} pixels in {len(data)} bytes, as decompression bombs do",
                "it was not decoded; get the picture from another source",
            )
        return decode(data), None
    except DamagedImageError as error:
        return None, error

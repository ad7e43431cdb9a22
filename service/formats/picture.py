"""Pictures of maps, as PNG: a panel per map, a colour map and its legend. For eyes; programs ask for tensors."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from attnserve.service.formats.colours import NUM_STEPS, diverging_palette, sequential_palette
from attnserve.service.pooling import find_factor, pool_maxima
from attnserve.service.problems import TooLarge

if TYPE_CHECKING:
    from PIL import Image, ImageDraw

MAX_PANELS = 512
# Pixels: of all panels together, and of one.
MAX_WIDTH, MAX_PANEL, MIN_PANEL = 2048, 512, 64
MARGIN, LINE = 8, 16
FONT_SIZE = 12
BAR_WIDTH, LEGEND_WIDTH = 14, 96
INK, PAPER = (30, 30, 30), (255, 255, 255)
# Deflate's fastest: a picture takes milliseconds, and is a tenth larger.
LEVEL = 1


@dataclass(frozen=True, kw_only=True)
class Panel:
    """One map and what stands above it."""

    title: str
    values: NDArray[np.float32]
    """[queries, keys]"""


def check_panels(num_panels: int, field: str) -> None:
    """Refuse more maps than one can look at.

    Raises:
        TooLarge: names `field`, of which there would be fewer.
    """
    if num_panels > MAX_PANELS:
        message = f"a picture shows at most {MAX_PANELS} maps, got {num_panels}; ask for fewer layers or heads"
        raise TooLarge.about(field, message)


def draw_panels(
    panels: Sequence[Panel], *, num_columns: int, caption: str, axes: tuple[str, str] = ("queries", "keys")
) -> bytes:
    """A picture of panels in rows of `num_columns`, all in the same colours, largest numbers brightest.

    Numbers that are never negative are coloured by their square root, as small weights matter; others from the most
    negative to the most positive. Large maps are pooled by their maxima.
    """
    from PIL import Image, ImageDraw

    limit = min(MAX_PANEL, max(MIN_PANEL, MAX_WIDTH // num_columns - MARGIN))
    tiles = [_enlarge(_shrink(panel.values, limit), limit) for panel in panels]
    largest = max((float(np.abs(tile).max()) for tile in tiles if tile.size), default=0.0)
    is_signed = any((tile < 0).any() for tile in tiles)
    palette = diverging_palette() if is_signed else sequential_palette()
    width, height = (max(tile.shape[axis] for tile in tiles) for axis in (1, 0))
    num_rows = -(-len(panels) // num_columns)
    panels_width, panels_height = num_columns * (width + MARGIN), num_rows * (height + LINE + MARGIN)
    size = (MARGIN + panels_width + LEGEND_WIDTH, MARGIN + LINE + max(panels_height, 6 * LINE) + LINE)
    picture = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(picture)
    _write(draw, MARGIN, MARGIN // 2, caption)
    for place, (panel, tile) in enumerate(zip(panels, tiles, strict=True)):
        row, column = divmod(place, num_columns)
        left, top = MARGIN + column * (width + MARGIN), MARGIN + LINE + row * (height + LINE + MARGIN)
        _write(draw, left, top, panel.title)
        picture.paste(to_image(tile, largest, palette, is_signed=is_signed), (left, top + LINE))
    _write(draw, MARGIN, size[1] - LINE, f"rows: {axes[0]}, from above; columns: {axes[1]}, from the left")
    _draw_legend(picture, draw, MARGIN + panels_width, 2 * LINE + MARGIN, largest, palette, is_signed=is_signed)
    return encode_image(picture)


def to_image(values: NDArray[Any], largest: float, palette: NDArray[np.uint8], *, is_signed: bool) -> "Image.Image":
    """A pixel per number, whose colour says how much of `largest` it is."""
    from PIL import Image

    part = np.nan_to_num(values / largest if largest > 0 else np.zeros_like(values))
    shade = (part + 1) / 2 if is_signed else np.sqrt(np.clip(part, 0, 1))
    codes = np.rint(np.clip(shade, 0, 1) * (NUM_STEPS - 1)).astype(np.uint8)
    image = Image.frombytes("P", (codes.shape[1], codes.shape[0]), codes.tobytes())
    image.putpalette(palette.tobytes())
    return image


def encode_image(image: "Image.Image") -> bytes:
    """A picture as a file."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=LEVEL)
    return buffer.getvalue()


def _shrink(values: NDArray[np.float32], limit: int) -> NDArray[np.float32]:
    factor = find_factor(max(values.shape), limit)
    positive = pool_maxima(values, factor)
    if factor == 1 or not (values < 0).any():
        return positive
    negative = -pool_maxima(-values, factor)
    stronger: NDArray[np.float32] = np.where(-negative > positive, negative, positive)
    return stronger


def _enlarge(values: NDArray[np.float32], limit: int) -> NDArray[np.float32]:
    """Whole pixels per number, so that small maps can be seen, and single rows."""
    factor = max(1, min(limit, 4 * MIN_PANEL) // max(values.shape))
    height = max(factor, -(-LINE // len(values)))
    return values.repeat(height, axis=0).repeat(factor, axis=1)


def _draw_legend(
    picture: "Image.Image",
    draw: "ImageDraw.ImageDraw",
    left: int,
    top: int,
    largest: float,
    palette: NDArray[np.uint8],
    *,
    is_signed: bool,
) -> None:
    height = 5 * LINE
    # What has the colour of each pixel, and of five marks along them.
    shades, marks = (np.linspace(1, -1 if is_signed else 0, number) for number in (height, 5))
    values, marked = (largest * (part if is_signed else part**2) for part in (shades, marks))
    picture.paste(to_image(values[:, None].repeat(BAR_WIDTH, 1), largest, palette, is_signed=is_signed), (left, top))
    for place, value in enumerate(marked.tolist()):
        _write(draw, left + BAR_WIDTH + 4, top + place * height // 4 - LINE // 2, f"{value:.3g}")


def _write(draw: "ImageDraw.ImageDraw", left: int, top: int, text: str) -> None:
    from PIL import ImageFont

    draw.text((left, top), text, INK, ImageFont.load_default(FONT_SIZE))

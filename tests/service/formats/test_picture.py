"""Pictures: every map is there, in colours that say how much, however large or small it is."""

import io

import numpy as np
import pytest
from PIL import Image

from attnserve.service.formats import picture as module
from attnserve.service.formats.colours import diverging_palette, sequential_palette
from attnserve.service.formats.picture import Panel, draw_panels, encode_image, to_image


def draw(*values, num_columns=1, caption="tiny version 1: weights"):
    panels = [Panel(title=f"layer 0 head {head}", values=np.array(one, np.float32)) for head, one in enumerate(values)]
    file = draw_panels(panels, num_columns=num_columns, caption=caption)
    assert file.startswith(b"\x89PNG\r\n")
    with Image.open(io.BytesIO(file)) as image:
        return np.array(image.convert("RGB"))


def count(pixels, colour):
    return int((pixels == colour).all(-1).sum())


def test_colours_say_how_much():
    palette = sequential_palette()
    pixels = draw([[1, 0], [0.25, 0]])
    size = 128 * 128
    # The legend has a few of each too.
    assert size <= count(pixels, palette[255]) < size + 500
    assert 2 * size <= count(pixels, palette[0]) < 2 * size + 500
    # A square root: a quarter of the weight has half of the colours below it.
    assert size <= count(pixels, palette[128]) < size + 500


def test_negative_numbers_are_another_colour():
    palette = diverging_palette()
    pixels = draw([[2, -2], [-1, 2]])
    assert count(pixels, palette[255]) >= 2 * 128 * 128
    assert count(pixels, palette[0]) >= 128 * 128


def test_all_panels_share_one_scale():
    palette = sequential_palette()
    pixels = draw([[1.0]], [[0.25]], num_columns=2)
    assert count(pixels, palette[255]) >= 256 * 256
    assert count(pixels, palette[128]) >= 256 * 256


def test_a_single_weight_of_a_large_map_is_seen():
    large = np.zeros((3000, 3000), np.float32)
    large[2999, 17] = 1
    pixels = draw(large)
    assert count(pixels, sequential_palette()[255]) >= 1
    assert max(pixels.shape) < 1000
    # The strongest of either sign.
    assert count(draw(-large), diverging_palette()[0]) >= 1


@pytest.mark.parametrize("shape", [(1, 1), (1, 700), (700, 1), (3, 200), (256, 256)])
def test_any_shape(shape):
    pixels = draw(np.ones(shape))
    assert count(pixels, sequential_palette()[255]) > 100


def test_nothing_is_drawn_as_nothing():
    assert count(draw([[0, 0], [0, 0]]), sequential_palette()[0]) >= 256 * 256


def test_many_heads_are_small():
    one = np.eye(300)
    assert max(draw(*[one] * 32, num_columns=16).shape) <= module.MAX_WIDTH + 200


def test_titles_and_the_caption_are_written():
    # Dark ink above the panel; a caption of another length has more of it.
    short, long = (count(draw([[1]], caption=text), module.INK) for text in ("a", "a much longer caption"))
    assert long > short > 0


def test_a_bare_map_has_a_pixel_per_number():
    values = np.array([[0, 0.25, 1]], np.float32)
    image = to_image(values, 1.0, sequential_palette(), is_signed=False)
    assert image.size == (3, 1)
    with Image.open(io.BytesIO(encode_image(image))) as read:
        np.testing.assert_array_equal(np.array(read.convert("RGB"))[0], sequential_palette()[[0, 128, 255]])

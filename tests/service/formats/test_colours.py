"""Colours: what stands for nothing, for most, and for either sign."""

import numpy as np

from attnserve.service.formats.colours import diverging_palette, sequential_palette

# Of matplotlib's viridis.
VIRIDIS = {0: (68, 1, 84), 64: (59, 82, 139), 128: (33, 145, 140), 192: (94, 201, 98), 255: (253, 231, 37)}


def luminance(palette):
    return palette @ np.array([0.2126, 0.7152, 0.0722])


def test_viridis_is_nearly_matplotlibs():
    palette = sequential_palette().astype(int)
    for place, colour in VIRIDIS.items():
        assert np.abs(palette[place] - colour).max() <= 4


def test_more_is_brighter():
    assert (np.diff(luminance(sequential_palette())) > -0.5).all()


def test_zero_lies_between_blue_and_red():
    palette = diverging_palette()
    (red, _, blue), middle, (more_red, _, less_blue) = palette[0], palette[127:129], palette[-1]
    assert blue > red
    assert more_red > less_blue
    assert (middle > 240).all()
    np.testing.assert_array_equal(luminance(palette).argmax() in (127, 128), True)

"""Lengths: every form on the command line, bounded by what the model takes."""

import numpy as np
import pytest

from attnserve.service.bench.lengths import Drawn, Lognormal, Seen, Uniform, draw_lengths, parse_lengths


def draw(text: str | None, *, num=10_000, max_length=512) -> Drawn:
    lengths = None if text is None else parse_lengths(text)
    return draw_lengths(lengths, shape=(num, 2), max_length=max_length, generator=np.random.default_rng(0))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("64", Uniform(low=64, high=64)),
        ("8-256", Uniform(low=8, high=256)),
        ("lognormal:40:0.8", Lognormal(median=40, sigma=0.8)),
        ("lognormal:1:0", Lognormal(median=1, sigma=0)),
    ],
)
def test_forms(text, expected):
    assert parse_lengths(text) == expected


NO_FORMS = (
    *("", "0", "-5", "0-5", "9-8", "8-", "1.5", "a", "8-9-10", "normal:4:1", "lognormal", "lognormal:4"),
    *("lognormal:0:1", "lognormal:4:-1", "lognormal:nan:1", "lognormal:4:inf", "lognormal:1:1:1"),
)


@pytest.mark.parametrize("text", NO_FORMS)
def test_what_is_no_form_is_refused(text):
    with pytest.raises(ValueError, match=r"^--lengths: expected 64, 8-256, .*, got "):
        parse_lengths(text)


def test_a_file_of_lengths(tmp_path):
    path = tmp_path / "lengths: seen.txt"
    path.write_text("3\n5\n5 600\n")
    assert parse_lengths(f"file:{path}") == Seen(lengths=(3, 5, 5, 600))
    drawn = draw(f"file:{path}")
    assert set(drawn.lengths.flat) == {3, 5, 512}
    assert drawn.num_cut == (drawn.lengths == 512).sum()
    assert (drawn.lengths == 5).mean() == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize("content", ["", "3\n0\n", "three", None])
def test_a_file_without_lengths_is_refused(tmp_path, content):
    path = tmp_path / "lengths.txt"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ValueError, match=r"^--lengths: expected .*lengths\.txt"):
        parse_lengths(f"file:{path}")


def test_a_range_holds_both_ends_alike():
    drawn = draw("8-11")
    assert drawn.lengths.shape == (10_000, 2)
    assert np.bincount(drawn.lengths.ravel())[8:] == pytest.approx(5000, rel=0.06)
    assert drawn.num_cut == 0


def test_a_lognormal_has_its_median_and_is_cut_at_the_model():
    drawn = draw("lognormal:40:1.5", max_length=100)
    assert np.median(drawn.lengths) == pytest.approx(40, rel=0.03)
    assert drawn.lengths.min() >= 1
    assert drawn.lengths.max() == 100
    assert 0 < drawn.num_cut <= (drawn.lengths == 100).sum()


def test_a_wild_sigma_is_no_overflow():
    assert set(draw("lognormal:40:1000", num=100).lengths.flat) == {1, 512}


@pytest.mark.parametrize(("max_length", "high"), [(5, 5), (512, 256)])
def test_without_any_the_model_decides(max_length, high):
    lengths = draw(None, max_length=max_length).lengths
    assert (lengths.min(), lengths.max()) == (1, high)


@pytest.mark.parametrize("text", ["101", "8-101"])
def test_longer_ones_than_the_model_takes_are_refused(text):
    with pytest.raises(ValueError, match="--lengths: expected at most the model's max_length 100, got 101"):
        draw(text, max_length=100)

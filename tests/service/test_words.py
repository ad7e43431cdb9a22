"""Words of texts, from the characters that tokens stand for."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attnserve.service.sequences import Input, Reader
from attnserve.service.words import find_words
from attnserve.text import TextReader
from tests.kinds import make_tokenizer


@pytest.fixture(scope="module")
def reader(make_manifest, tmp_path_factory) -> Reader:
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    make_tokenizer(ended=True).save(str(path))
    return Reader(make_manifest(vocabulary_size=300), TextReader(path))


def read(reader: Reader, text: str) -> Input:
    encoded = reader.text.encode(text)
    return Input(values=encoded.ids, text=text, spans=encoded.spans)


def test_tokens_of_a_word_and_tokens_by_themselves(reader):
    words = find_words(read(reader, "the cat, \n  h\u00e9\U0001f600"), reader)
    assert words.texts == ["the", "cat,", "\n", "h\u00e9\U0001f600", "<end>"]
    assert words.spans == [(0, 3), (4, 8), (9, 10), (12, 15), None]
    # " cat" begins with a blank, and is of the word it goes on with; so are blanks that are tokens.
    assert words.of_step.tolist() == [0, 0, 1, 1, 2, 2, *[3] * 9, 4]
    assert words.steps == [(0, 2), (2, 4), (4, 6), (6, 15), (15, 16)]


def test_blanks_at_the_end_are_words_of_their_own(reader):
    words = find_words(read(reader, "  "), reader)
    assert words.texts == [" ", "<end>"]
    assert words.of_step.tolist() == [0, 0, 1]


@settings(deadline=None, derandomize=True, max_examples=200)
@given(text=st.text(st.sampled_from("the cat\u00e9\U0001f600\t"), min_size=1, max_size=30))
def test_every_visible_word_is_one_run_of_steps(reader, text):
    one = read(reader, text)
    words = find_words(one, reader)
    assert (np.diff(words.of_step) >= 0).all()
    assert set(words.of_step.tolist()) == set(range(len(words.texts)))
    visible = [word for word in words.texts if word is not None and word.strip() and word != "<end>"]
    assert visible == text.split()
    for word, span in zip(words.texts, words.spans, strict=True):
        assert span is None or text[slice(*span)] == word
    # No word is of spaces but one at the end of the text.
    assert [word for word in words.texts[:-2] if not word.strip(" ")] == []

"""Words: tokens of a text put together, by the characters they stand for."""

import itertools
import re
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from attnserve.service.sequences import Input, Reader
from attnserve.text import Span

WORD = re.compile(r"\S+")
VISIBLE = re.compile(r"\S")


# Without a repr: words are user data.
@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Words:
    """The words of one text, each a run of steps."""

    texts: list[str | None]
    """Of a token that stands for no visible character of the text, its own."""
    spans: list[Span | None]
    """Characters of the text, as those of tokens."""
    of_step: NDArray[np.int64]
    """[N] the word of each step, ascending."""

    @property
    def steps(self) -> list[Span]:
        """First step of each word, and the one after its last."""
        starts = np.searchsorted(self.of_step, np.arange(len(self.texts) + 1)).tolist()
        return list(itertools.pairwise(starts))


def find_words(read: Input, reader: Reader) -> Words:
    """Words of a text: runs of characters that are no white space.

    A token belongs to the word of its first visible character, and one of spaces alone to the word of the next token.
    Tokens without a visible character, such as line breaks and those that the tokenizer added, are words of their own.
    """
    assert read.text is not None
    assert read.spans is not None
    runs = [match.span() for match in WORD.finditer(read.text)]
    ends = np.array([end for _, end in runs], np.int64)
    # From the last to the first: the run of characters that each token is of, or a number below 0 of its own.
    owners: list[int] = []
    for step, span in reversed(list(enumerate(read.spans))):
        seen = None if span is None else VISIBLE.search(read.text, *span)
        if seen is not None:
            owners.append(int(np.searchsorted(ends, seen.start(), side="right")))
        elif span is not None and owners and read.spans[step + 1] is not None and _is_spaces(read.text, span):
            owners.append(owners[-1])
        else:
            owners.append(-1 - step)
    texts: list[str | None] = []
    spans: list[Span | None] = []
    of_step: list[int] = []
    owners.reverse()
    for owner, members in itertools.groupby(owners):
        # What stands for a word of its own is its last token: before it there may be spaces.
        num_steps = len(list(members))
        last = len(of_step) + num_steps - 1
        span = runs[owner] if owner >= 0 else read.spans[last]
        texts.append(_name(read.text, span, int(read.values[last]), reader))
        spans.append(span)
        of_step += [len(texts) - 1] * num_steps
    return Words(texts=texts, spans=spans, of_step=np.array(of_step, np.int64))


def _is_spaces(text: str, span: Span) -> bool:
    return not text[slice(*span)].strip(" ")


def _name(text: str, span: Span | None, index: int, reader: Reader) -> str | None:
    return reader.name_token(index) if span is None else text[slice(*span)]

"""Text: a tokenizer in Hugging Face's `tokenizers` format, as checkpoints and bundles hold it."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from attnserve.interface import Interface
from attnserve.records import RecordError, read_text

MAX_TOKENIZER_BYTES = 64 * 1024 * 1024
Span = tuple[int, int]


class TextError(ValueError):
    """A tokenizer cannot be read, or cannot read a text; the message says why."""


class TokenizerPanic(TextError):
    """The tokenizers library broke off where it thought it never could: the file is malformed in a way it overlooks."""


# Without a repr: texts are user data.
@dataclass(frozen=True, kw_only=True, repr=False)
class Encoded:
    """A text as a model reads it."""

    ids: NDArray[np.int64]
    """[n]"""
    spans: list[Span | None]
    """First character of each token and the one after its last, in characters (code points) of the text; None for
    a token that the tokenizer added. Tokens that share a character, as the bytes of an emoji do, share its span."""


class TextReader:
    """A tokenizer.

    Args:
        path: `tokenizer.json`. Its truncation and padding are ignored: what is too long is refused, never cut.

    Raises:
        TextError: missing, too large or malformed.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        import tokenizers

        try:
            text = read_text(Path(path), MAX_TOKENIZER_BYTES)
        except RecordError as error:
            raise TextError(str(error)) from None
        try:
            self._tokenizer: Any = tokenizers.Tokenizer.from_str(text)
            self._tokenizer.no_truncation()
            self._tokenizer.no_padding()
            # The post-processor names ids of its own, in the vocabulary or not, and adds them to every text.
            self._always: list[int] = self._tokenizer.encode("").ids
        except BaseException as error:
            raise _explain(error, f"{path}: not a tokenizer: {error}") from None
        self._added: dict[int, Any] = self._tokenizer.get_added_tokens_decoder()

    @property
    def num_ids(self) -> int:
        """One more than the largest id it can give."""
        return 1 + max((*self._tokenizer.get_vocab(with_added_tokens=True).values(), *self._always), default=-1)

    @property
    def special_ids(self) -> list[int]:
        """Ids of tokens that stand for no text, such as a separator."""
        return [index for index, token in self._added.items() if token.special]

    def encode(self, text: str) -> Encoded:
        """Turn a text into ids, with the tokens that the tokenizer's post-processor adds.

        Raises:
            TextError: the tokenizer fails on it.
        """
        try:
            # A batch of one: `encode` keeps the interpreter's lock, and a million characters take seconds.
            (encoding,) = self._tokenizer.encode_batch([text])
        except BaseException as error:
            raise _explain(error, f"the tokenizer fails on it: {type(error).__name__}") from None
        spans = [
            None if is_added else span
            for span, is_added in zip(encoding.offsets, encoding.special_tokens_mask, strict=True)
        ]
        return Encoded(ids=np.array(encoding.ids, np.int64), spans=spans)

    def decode(self, ids: Sequence[int]) -> str:
        """The text of several tokens; special tokens are left out, and what is no UTF-8 yet reads as U+FFFD.

        Raises:
            TextError: the tokenizer fails on them.
        """
        return self._decode(list(ids), skip_special_tokens=True)

    def describe(self, index: int) -> str:
        """The text of one token, special ones included; U+FFFD where it is a part of a character.

        Raises:
            TextError: the tokenizer fails on it.
        """
        added = self._added.get(index)
        text: str = self._decode([index], skip_special_tokens=False) if added is None else added.content
        return text

    def spell(self, index: int) -> str | None:
        """A token as the vocabulary has it, blanks and joints included; None if there is no such id."""
        token: str | None = self._tokenizer.id_to_token(index)
        return token

    def _decode(self, ids: list[int], *, skip_special_tokens: bool) -> str:
        try:
            text: str = self._tokenizer.decode(ids, skip_special_tokens=skip_special_tokens)
        except BaseException as error:
            raise _explain(error, f"the tokenizer cannot decode: {type(error).__name__}") from None
        return text


def read_tokenizer(path: Path, interface: Interface) -> TextReader:
    """The tokenizer of a model, refused if the model cannot read what it gives.

    Raises:
        TextError: it is malformed, gives ids beyond the vocabulary, or the model reads no ids.
    """
    if interface.vocabulary_size is None:
        raise TextError(f"{path}: expected none, since the model reads features")
    reader = TextReader(path)
    if reader.num_ids > interface.vocabulary_size:
        expected = f"ids below vocabulary_size {interface.vocabulary_size}"
        raise TextError(f"{path}: expected {expected}, got {reader.num_ids - 1}")
    return reader


def _explain(error: BaseException, message: str) -> TextError:
    """The error to raise instead, unless it is not the library's own: a panic is no `Exception`, nor is Ctrl-C."""
    if type(error).__name__ == "PanicException":
        return TokenizerPanic(message)
    if not isinstance(error, Exception):
        raise error
    return TextError(message)

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from attnserve.interface import Interface
from attnserve.text import TextError, TextReader, read_tokenizer

BYTES = sorted(pre_tokenizers.ByteLevel.alphabet())
FAMILY = "\N{WOMAN}\N{ZERO WIDTH JOINER}\N{WOMAN}\N{ZERO WIDTH JOINER}\N{GIRL}"
ACCENTED = "e\N{COMBINING ACUTE ACCENT}a"
TEXTS = [
    "cat",
    "a cat\N{EM DASH}at a cat",
    " two  spaces ",
    "line\nline\ttab",
    "a\N{GRINNING FACE}b",
    "\N{THUMBS UP SIGN}\N{EMOJI MODIFIER FITZPATRICK TYPE-5}",
    FAMILY + " cat",
    ACCENTED,
    "\N{LATIN SMALL LIGATURE FI}\N{LATIN CAPITAL LETTER I WITH DOT ABOVE}",
    "\N{CJK UNIFIED IDEOGRAPH-65E5}\N{CJK UNIFIED IDEOGRAPH-672C}",
    "a\N{NULL}\N{ZERO WIDTH NO-BREAK SPACE}b",
    "a <s> of its own</s>",
]


def byte_level(*, prefix: bool = False) -> Tokenizer:
    """Reads any text: ids 0 and 1 are added around it, 2 .. 257 are bytes, 258 and 259 are "at" and "cat"."""
    vocabulary = {token: index for index, token in enumerate(["<s>", "</s>", *BYTES, "at", "cat"])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[("a", "t"), ("c", "at")]))
    tokenizer.add_special_tokens(["<s>", "</s>"])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    return tokenizer


def words(vocabulary: dict[str, int], unknown: str | None = None) -> Tokenizer:
    tokenizer = Tokenizer(models.WordLevel(vocabulary, **({} if unknown is None else {"unk_token": unknown})))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return tokenizer


@pytest.fixture
def read(tmp_path: Path) -> Callable[..., TextReader]:
    """Write a tokenizer to a file, changed by hand or not, and read it."""

    def write_and_read(tokenizer: Tokenizer, change: Callable[[Any], object] = lambda document: None) -> TextReader:
        document = json.loads(tokenizer.to_str())
        change(document)
        (tmp_path / "tokenizer.json").write_text(json.dumps(document), "utf-8")
        return TextReader(tmp_path / "tokenizer.json")

    return write_and_read


@pytest.mark.parametrize("text", TEXTS, ids=ascii)
def test_a_text_comes_back(read: Callable[..., TextReader], text: str) -> None:
    reader = read(byte_level())
    encoded = reader.encode(text)
    assert encoded.ids.dtype == np.int64
    assert (encoded.ids[0], encoded.ids[-1]) == (0, 1)
    assert reader.decode(encoded.ids.tolist()) == text.replace("<s>", "").replace("</s>", "")


@pytest.mark.parametrize("prefix", [False, True])
@pytest.mark.parametrize("text", TEXTS, ids=ascii)
def test_spans_slice_every_character_out_of_the_text(read: Callable[..., TextReader], text: str, prefix: bool) -> None:
    encoded = read(byte_level(prefix=prefix)).encode(text)
    assert len(encoded.spans) == len(encoded.ids)
    assert encoded.spans[0] is None
    assert encoded.spans[-1] is None
    inner = [span for span in encoded.spans if span is not None]
    assert inner == sorted(inner)
    assert {index for start, end in inner for index in range(start, end)} == set(range(len(text)))
    # Tokens that share a character share its span: without repetitions, the slices are the text. The blank that is
    # put before it has no character of its own and borrows one.
    slices = [text[start:end] for start, end in dict.fromkeys(inner)]
    assert "".join(slices) == text or (prefix and "".join(slices[1:]) == text)


def test_spans_by_hand(read: Callable[..., TextReader]) -> None:
    text = f"cat\N{GRINNING FACE} {FAMILY[:2]}"
    encoded = read(byte_level()).encode(text)
    emoji, space, woman, joiner = [(3, 4)] * 4, [(4, 5)], [(5, 6)] * 4, [(6, 7)] * 3
    assert encoded.spans == [None, (0, 3), *emoji, *space, *woman, *joiner, None]
    assert encoded.ids[1] == 259


def test_spans_are_those_of_the_text_and_not_of_its_normal_form(read: Callable[..., TextReader]) -> None:
    tokenizer = words({"fi": 0, "e": 1, "i": 2})
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFKD(), normalizers.StripAccents(), normalizers.Lowercase()]
    )
    text = f"{TEXTS[8][0]} {ACCENTED[:2]} {TEXTS[8][1]}  e"
    encoded = read(tokenizer).encode(text)
    assert encoded.ids.tolist() == [0, 1, 2, 1]
    assert [text[start:end] for start, end in encoded.spans][::3] == [text[0], "e"]
    assert encoded.spans == [(0, 1), (2, 3), (5, 6), (8, 9)]


def test_only_what_the_tokenizer_added_has_no_span(read: Callable[..., TextReader]) -> None:
    encoded = read(byte_level()).encode("<s>a</s>")
    assert encoded.ids.tolist() == [0, 0, 2 + BYTES.index("a"), 1, 1]
    assert encoded.spans == [None, (0, 3), (3, 4), (4, 8), None]


def test_an_empty_text_has_the_added_tokens_alone(read: Callable[..., TextReader]) -> None:
    encoded = read(byte_level()).encode("")
    assert (encoded.ids.tolist(), encoded.spans) == ([0, 1], [None, None])
    bare = read(words({"a": 0})).encode("")
    assert (bare.ids.tolist(), bare.ids.dtype, bare.spans) == ([], np.int64, [])


def test_truncation_and_padding_of_the_file_are_ignored(read: Callable[..., TextReader]) -> None:
    tokenizer = byte_level()
    tokenizer.enable_truncation(max_length=4)
    tokenizer.enable_padding(length=300, pad_id=1, pad_token="</s>")
    assert len(tokenizer.encode("b" * 100).ids) == 300
    assert len(read(tokenizer).encode("b" * 100).ids) == 102


def test_tokens_are_described_one_by_one(read: Callable[..., TextReader]) -> None:
    reader = read(byte_level())
    ids = reader.encode("cat \N{GRINNING FACE}").ids.tolist()
    assert [reader.describe(index) for index in ids] == ["<s>", "cat", " ", *["\N{REPLACEMENT CHARACTER}"] * 4, "</s>"]
    assert reader.decode(ids[:5]) == "cat \N{REPLACEMENT CHARACTER}"


@pytest.mark.parametrize("text", ["a b", "\ud800", "a\udfffb"], ids=ascii)
def test_a_text_the_tokenizer_fails_on_is_not_in_the_message(read: Callable[..., TextReader], text: str) -> None:
    with pytest.raises(TextError, match=r"^the tokenizer fails on it: \w+$"):
        read(words({"a": 0})).encode(text)


def test_what_was_encoded_does_not_show_itself(read: Callable[..., TextReader]) -> None:
    assert repr(read(words({"a": 0})).encode("a")).startswith("<attnserve.text.Encoded object at")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{}",
        b"[]",
        b"null",
        b"[" * 200_000,
        b'{"model": {}}',
        b'{"version": "9.0", "model": {"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "a"}}',
        b'{"model": {"type": "BPE", "vocab": {"a": 0}, "merges": ["a b"]}}',
        b'{"model": {"type": "WordLevel", "vocab": {"a": -1}, "unk_token": "a"}}',
    ],
    ids=["empty", "object", "list", "null", "deep", "model", "version", "merges", "negative"],
)
def test_what_is_no_tokenizer_is_refused_by_file(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_bytes(content)
    with pytest.raises(TextError) as caught:
        TextReader(path)
    assert str(caught.value).startswith(f"{path}: not a tokenizer: ")
    assert len(str(caught.value)) < len(str(path)) + 200


def test_a_file_that_cannot_be_read_is_refused_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "tokenizer.json"
    with pytest.raises(TextError, match=r"tokenizer\.json: no such file$"):
        TextReader(path)
    path.write_bytes(b"\xff{}")
    with pytest.raises(TextError, match=r"tokenizer\.json: cannot be read as UTF-8 text: "):
        TextReader(path)
    monkeypatch.setattr("attnserve.text.MAX_TOKENIZER_BYTES", 2)
    with pytest.raises(TextError, match=r"tokenizer\.json: expected at most 2 bytes, got 3$"):
        TextReader(path)


def stumbling() -> Tokenizer:
    """The library panics on every text that is not empty: it divides by a length of 0."""
    tokenizer = words({" ": 0, "a": 1})
    tokenizer.pre_tokenizer = pre_tokenizers.FixedLength(length=0)
    # And on a token that is all blank: it cuts off more than there is.
    tokenizer.decoder = decoders.Strip(content=" ", left=1, right=1)
    return tokenizer


def test_a_panic_of_the_library_is_an_error_like_any_other(
    read: Callable[..., TextReader], capfd: pytest.CaptureFixture[str]
) -> None:
    reader = read(stumbling())
    with pytest.raises(TextError, match=r"^the tokenizer fails on it: PanicException$"):
        reader.encode("a")
    for decode in (lambda: reader.decode([0]), lambda: reader.describe(0)):
        with pytest.raises(TextError, match=r"^the tokenizer cannot decode: PanicException$"):
            decode()
    assert reader.describe(1) == "a"
    # The library's own complaint.
    assert "panicked at" in capfd.readouterr().err


@pytest.mark.parametrize("interrupt", [KeyboardInterrupt, SystemExit])
def test_an_interrupt_passes(
    read: Callable[..., TextReader], monkeypatch: pytest.MonkeyPatch, interrupt: type[BaseException]
) -> None:
    class Interrupted:
        def __getattr__(self, name: str) -> Any:
            raise interrupt

    reader = read(byte_level())
    monkeypatch.setattr(reader, "_tokenizer", Interrupted())
    for call in (lambda: reader.encode("a"), lambda: reader.decode([2]), lambda: reader.describe(2)):
        with pytest.raises(interrupt):
            call()
    monkeypatch.setattr("tokenizers.Tokenizer", Interrupted())
    with pytest.raises(interrupt):
        read(byte_level())


def with_added(tokenizer: Tokenizer, *tokens: str) -> Tokenizer:
    tokenizer.add_tokens(list(tokens))
    return tokenizer


def template(document: Any) -> None:
    document["post_processor"]["special_tokens"]["</s>"]["ids"] = [300]


@pytest.mark.parametrize(
    ("tokenizer", "change", "num_ids"),
    [
        (byte_level(), lambda document: None, 260),
        (words({"a": 3, "b": 8}), lambda document: None, 9),
        (with_added(words({"a": 0, "b": 1}), "c", "d"), lambda document: None, 4),
        (words({}), lambda document: None, 0),
        # The ids it adds are not looked up: they need not be the vocabulary's.
        (byte_level(), template, 301),
    ],
    ids=["vocabulary", "sparse", "added", "empty", "post-processor"],
)
def test_every_id_must_be_one_of_the_model(
    read: Callable[..., TextReader],
    tmp_path: Path,
    tokenizer: Tokenizer,
    change: Callable[[Any], object],
    num_ids: int,
) -> None:
    assert read(tokenizer, change).num_ids == num_ids
    path = tmp_path / "tokenizer.json"
    for size in (max(num_ids, 1), num_ids + 5):
        reader = read_tokenizer(path, Interface(task="next_token", max_length=9, vocabulary_size=size))
        assert reader.num_ids == num_ids
    if num_ids > 1:
        with pytest.raises(TextError) as caught:
            read_tokenizer(path, Interface(task="next_token", max_length=9, vocabulary_size=num_ids - 1))
        expected = f"expected ids below vocabulary_size {num_ids - 1}, got {num_ids - 1}"
        assert str(caught.value) == f"{path}: {expected}"


def test_a_model_of_features_has_no_tokenizer(tmp_path: Path) -> None:
    interface = Interface(task="classify_token", max_length=9, num_features=2, num_classes=2)
    with pytest.raises(TextError, match=r"tokenizer\.json: expected none, since the model reads features$"):
        read_tokenizer(tmp_path / "tokenizer.json", interface)


def test_tokens_are_spelled_as_the_vocabulary_has_them(read: Callable[..., TextReader]) -> None:
    reader = read(byte_level())
    assert [reader.spell(index) for index in (0, 258, 259)] == ["<s>", "at", "cat"]
    assert len({reader.spell(index) for index in range(260)}) == 260
    assert reader.spell(260) is None

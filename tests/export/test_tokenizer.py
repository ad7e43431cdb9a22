"""A tokenizer is tried out where it can do no harm."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from attnserve.export import tokenizer
from attnserve.export.tokenizer import check_tokenizer
from attnserve.models.checkpoint import CheckpointError
from tests.kinds import make_tokenizer

WORDS = {"type": "WordLevel", "vocab": {"a": 0, "b": 1}, "unk_token": "[UNK]"}
# What blows up to 64 * 10^12 letters.
GROWS = {"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 200}
SPLIT = {"type": "Split", "pattern": {"Regex": "(["}, "behavior": "Isolated", "invert": False}


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    def write(**parts: Any) -> Path:
        empty = dict.fromkeys(("truncation", "padding", "normalizer", "pre_tokenizer", "post_processor", "decoder"))
        document = {"version": "1.0", "added_tokens": [], **empty, "model": WORDS, **parts}
        path = tmp_path / "tokenizer.json"
        path.write_text(json.dumps(document))
        return path

    return write


def test_a_tokenizer_that_works_passes(tmp_path: Path) -> None:
    make_tokenizer(ended=True).save(str(tmp_path / "tokenizer.json"))
    check_tokenizer(tmp_path / "tokenizer.json")


def test_so_does_one_that_knows_what_it_cannot_read(write: Callable[..., Path]) -> None:
    # Of two words, and none for those it does not know: it says so, and whoever asks is told.
    check_tokenizer(write())


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"model": {"type": "none"}}, "not a tokenizer: "),
        ({"pre_tokenizer": SPLIT}, "not a tokenizer: Oniguruma error"),
        ({"pre_tokenizer": {"type": "FixedLength", "length": 0}}, "its library panics on ' '"),
        ({"normalizer": {"type": "Precompiled", "precompiled_charsmap": "AAAAAA=="}}, "its library panics on ' '"),
        (
            {"post_processor": {"type": "TemplateProcessing", "single": [{"SpecialToken": {"id": "[X]", "type_id": 0}}],
                                "pair": [], "special_tokens": {}}},
            "not a tokenizer: no entry found for key: its library panics",
        ),
    ],
    ids=["no model", "expression", "panic", "panic of a normaliser", "panic at reading"],
)  # fmt: skip
def test_what_is_none_is_refused_by_its_file(write: Callable[..., Path], parts: Any, message: str) -> None:
    path = write(**parts)
    with pytest.raises(CheckpointError) as refused:
        check_tokenizer(path)
    assert str(refused.value).startswith(f"{path}: {message}")


def test_one_that_never_ends_is_not_waited_for(write: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizer, "PATIENCE_S", 1.5)
    with pytest.raises(CheckpointError, match=r"tokenizer\.json: expected .* within 1\.5 s, got one that takes longer"):
        check_tokenizer(write(normalizer={"type": "Sequence", "normalizers": [GROWS] * 6}))


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("import os; os.abort()", "expected a tokenizer, got one that its library crashes on with SIGABRT"),
        ("raise SystemExit('what happened')", "cannot be tried out: the process ended with 1: what happened"),
    ],
)
def test_a_process_that_breaks_is_told_from_a_bug(
    write: Callable[..., Path], monkeypatch: pytest.MonkeyPatch, code: str, message: str
) -> None:
    monkeypatch.setattr(tokenizer, "TRY", code)
    path = write()
    with pytest.raises(CheckpointError) as refused:
        check_tokenizer(path)
    assert str(refused.value).strip() == f"{path}: {message}"

"""Modules that cannot be exported are refused by name, before or while they are traced, and left as they were."""

import copy
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor, nn

from attnserve.export import export_module
from attnserve.export.golden import record_golden
from attnserve.export.subject import ModuleError, Subject, find_layers
from tests.export.foreign import (
    EXAMPLE,
    INTERFACE,
    MAX_LENGTH,
    WORDS,
    Flat,
    Foreign,
    assert_unchanged,
    foreign,
    mixer,
    normed,
    state_of,
)

pytestmark = pytest.mark.export


class Bare(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(WORDS, WORDS)

    def forward(self, words: Tensor, places: Tensor, slots: Tensor, rows: Tensor) -> Tensor:
        return self.words(words)[rows]


class Repeated(Foreign):
    def order(self) -> list[nn.Module]:
        return [*self.stack, self.stack[1]]


class Reversed(Foreign):
    def order(self) -> list[nn.Module]:
        return list(reversed(self.stack))


class Skipping(Foreign):
    def order(self) -> list[nn.Module]:
        return list(self.stack)[:1]


class Sealed(Foreign):
    """A seam that the stream passes twice."""

    def __init__(self, *mixers: nn.Module) -> None:
        super().__init__(*mixers)
        self.seam = nn.Identity()

    def pick(self, x: Tensor, rows: Tensor) -> Tensor:
        return self.seam(self.seam(x))[rows]


class Raising(Foreign):
    def pick(self, x: Tensor, rows: Tensor) -> Tensor:
        raise KeyError("where is it?")


class Unrowed(Foreign):
    def forward(self, words: Tensor, places: Tensor, slots: Tensor) -> Tensor:
        return super().forward(words, places, slots, places)


class Heedless(Foreign):
    """Answers for every row, asked for or not."""

    def pick(self, x: Tensor, rows: Tensor) -> Tensor:
        return x


REFUSED: dict[str, tuple[Callable[[], nn.Module], dict[str, Any], str]] = {
    "no attention": (Bare, {}, "module: expected attention by attnserve.models.Attention, found none"),
    "twice": (lambda: foreign(Repeated), {}, "2 attention layers to run once, in the order registered; got 3 runs"),
    "another order": (
        lambda: foreign(Reversed, mixer(), mixer()),
        {},
        "2 attention layers to run once, in the order registered; got 2 runs",
    ),
    "not at all": (lambda: foreign(Skipping), {}, "in the order registered; got 1 runs"),
    "norm before the projection": (normed, {}, "projections: layer 0: the heads' outputs do not go straight into a"),
    "a norm for a projection": (
        normed,
        {"projections": ["stack.0.between", "stack.1.between"]},
        "projections: layer 0: expected a Linear that reads the heads' 12 numbers, got LayerNorm",
    ),
    "another projection": (
        lambda: foreign(Foreign, mixer(heads=2), mixer(heads=2)),
        {"projections": ["stack.0.qkv", "stack.1.qkv"]},
        "projections: layer 0: expected a Linear that reads the heads' 6 numbers, got Linear(in_features=12",
    ),
    "one projection": (normed, {"projections": ["stack.0.mix"]}, "projections: expected 2, one per attention layer"),
    "no such projection": (normed, {"projections": ["nowhere"]}, "projections: expected names of submodules, got"),
    "no blocks": (
        lambda: foreign(Flat),
        {},
        "blocks: layer 0: expected a module that returns the residual stream [5, 12], got [5, 4, 3]",
    ),
    "a block that returns something else": (
        foreign,
        {"blocks": ["stack.0.qkv", "stack.1"]},
        "blocks: layer 0: expected a module that returns the residual stream [5, 12], got [5, 24]",
    ),
    "a block that does not run": (foreign, {"blocks": ["stack", "stack.1"]}, "[5, 12], got NoneType"),
    "one block twice": (foreign, {"blocks": ["stack.0", "stack.0"]}, "blocks: expected a module per layer that runs"),
    "blocks in another order": (foreign, {"blocks": ["stack.1", "stack.0"]}, "once, in the order of the layers, got"),
    "a block that runs twice": (lambda: foreign(Sealed), {"blocks": ["stack.0", "seam"]}, "that runs once, in the"),
    "three blocks": (foreign, {"blocks": ["stack.0"] * 3}, "blocks: expected 2, one per attention layer, got 3"),
    "no such block": (foreign, {"blocks": ["stack.7", "stack.1"]}, "blocks: expected names of submodules, got"),
    "numbers of heads": (
        lambda: foreign(Foreign, mixer(heads=4), mixer(heads=2)),
        {},
        "module: expected as many heads in every layer, got [4, 2]",
    ),
    "numbers of logits": (foreign, {"vocabulary_size": WORDS - 1}, "expected 10 logits per answer, got shape [5, 11]"),
    "an exception": (
        lambda: foreign(Raising),
        {},
        "called as (inputs, positions, slots, rows); on the example it raised KeyError: 'where is it?'",
    ),
    "no argument for rows": (lambda: foreign(Unrowed), {}, "on the example it raised TypeError"),
    "one for rows, but mean": (
        foreign,
        {"task": "classify_sequence", "num_classes": WORDS, "pooling": "mean"},
        "called as (inputs, positions, slots); on the example it raised TypeError",
    ),
    "rows overlooked": (lambda: foreign(Heedless), {}, "module: expected the logits of one row when rows is [row]"),
    "an id beyond": (foreign, {"example": [0, WORDS]}, "example: expected ids from 0 to 10"),
    "an id below": (foreign, {"example": [0, -1]}, "example: expected ids from 0 to 10"),
    "too long": (foreign, {"example": [1] * 10}, "example: expected at most max_length 9 steps, got 10"),
    "empty": (foreign, {"example": []}, "example: expected ids [n] or finite feature vectors [n, F], got float64 [0]"),
    "numbers": (foreign, {"example": [0.5, 1.5]}, "example: expected ids [n] or finite feature vectors"),
    "ragged": (foreign, {"example": [[1.0], [1.0, 2.0]]}, "[n, F], got rows of several lengths"),
    "a batch of ids": (foreign, {"example": [[1, 2]]}, "example: expected ids [n] or finite feature vectors"),
    "NaN": (foreign, {"example": [[float("nan")]], "vocabulary_size": None}, "example: expected ids [n] or finite"),
    "beyond float32": (foreign, {"example": [[1e39]], "vocabulary_size": None}, "example: expected ids [n] or finite"),
    "features and ids": (foreign, {"example": [[1.0]]}, "vocabulary_size: expected either that or num_features"),
    "ids of no number": (foreign, {"vocabulary_size": None}, "vocabulary_size: expected either that or num_features"),
    "a length in words": (foreign, {"max_length": "9"}, "max_length: expected int, got str '9'"),
    "labels": (foreign, {"labels": ["a"]}, "labels: expected 11 (vocabulary_size), got 1"),
    "precision": (foreign, {"precision": "int8"}, "precision: expected one of float32, float16, bfloat16, got 'int8'"),
}


@pytest.mark.parametrize(("make", "options", "said"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_exported_is_refused_by_name_and_left_as_it_was(
    tmp_path: Path, make: Callable[[], nn.Module], options: dict[str, Any], said: str
) -> None:
    model = make().train()
    before = state_of(model)
    arguments = {"example": EXAMPLE, "task": "next_token", "max_length": MAX_LENGTH, "vocabulary_size": WORDS}
    with pytest.raises(ValueError, match=re.escape(said)):
        export_module(model, destination=tmp_path / "new" / "foreign" / "1", **arguments | options)
    assert list(tmp_path.iterdir()) == []
    assert_unchanged(model, before)


class Averaging(Foreign):
    """Centres over the batch, as a batch norm in training does."""

    def pick(self, x: Tensor, rows: Tensor) -> Tensor:
        return (x - x.mean(0))[rows]


class Neighbourly(Foreign):
    """Adds the row before, whosever it is."""

    def pick(self, x: Tensor, rows: Tensor) -> Tensor:
        return (x + 1e-6 * x.roll(1, 0))[rows]


@pytest.mark.parametrize("kind", [Averaging, Neighbourly])
def test_sequences_that_see_each_other_are_refused(kind: type[Foreign]) -> None:
    model = foreign(kind).eval()
    layers = find_layers(model, INTERFACE, EXAMPLE)
    subject = Subject(module=model, interface=INTERFACE, layers=layers, precision="float32")
    with pytest.raises(ModuleError, match="module: the answer to a sequence depends on the others in its batch"):
        record_golden(copy.deepcopy(model).double(), subject)


class Counting(Foreign):
    """Turns a size into a number, which a tracer takes for a constant."""

    def pick(self, x: Tensor, rows: Tensor) -> Tensor:
        return x.reshape(len(x), -1)[rows]


def test_sizes_that_became_constants_are_refused(tmp_path: Path) -> None:
    told = {"task": "next_token", "max_length": MAX_LENGTH, "vocabulary_size": WORDS}
    with pytest.raises(ModuleError, match=r"expected to run on any number of rows, but its graph takes tokens \[16\]"):
        export_module(foreign(Counting), EXAMPLE, destination=tmp_path / "foreign" / "1", **told)
    assert list(tmp_path.iterdir()) == []

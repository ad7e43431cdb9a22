"""Modules that cannot be exported are refused by name, before or while they are traced, and left as they were."""

import copy
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
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


class Unsorted(Foreign):
    """Answers in an order of its own."""

    def pick(self, x: Tensor, rows: Tensor) -> Tensor:
        return x[rows.sort().values]


class Heedless(Foreign):
    """Answers for every row, asked for or not."""

    def pick(self, x: Tensor, rows: Tensor) -> Tensor:
        return x


REFUSED: dict[str, tuple[Callable[[], nn.Module], dict[str, Any], str]] = {
    "no attention": (Bare, {}, "module: expected attention by attnserve.models.Attention, found none"),
    "twice": (lambda: foreign(Repeated), {}, "2 attention layers to run once, in the order registered; got runs of"),
    "another order": (
        lambda: foreign(Reversed, mixer(), mixer()),
        {},
        "2 attention layers to run once, in the order registered; got runs of layers [1, 0]",
    ),
    "not at all": (lambda: foreign(Skipping), {}, "in the order registered; got runs of layers ["),
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
    "rows sorted": (lambda: foreign(Unsorted), {}, "module: expected logits in the order of rows, got them in another"),
    "more steps than positions": (
        foreign,
        {"max_length": MAX_LENGTH + 1},
        f"max_length: expected steps that the module has positions for, but at step {MAX_LENGTH} it raised IndexError",
    ),
    "projections in another order": (
        normed,
        {"projections": ["stack.1.mix", "stack.0.mix"]},
        "projections: layer 0: expected a Linear that runs once, between this layer's attention and the next one's",
    ),
    "a truth that is a word": (foreign, {"portable": "no"}, "portable: expected True or False, got 'no'"),
    "labels in one word": (foreign, {"labels": "abc"}, "labels: expected a list of names, got 'abc'"),
    "labels of numbers": (foreign, {"labels": list(range(WORDS))}, "labels: expected a list of names, got [0, 1"),
    "one name for blocks": (foreign, {"blocks": "stack.0"}, "blocks: expected a list of names, got 'stack.0'"),
    "a card that is a list": (foreign, {"card": [1]}, "card: expected a dictionary, got list"),
    "a card of objects": (foreign, {"card": {"a": object()}}, "card: expected what JSON can hold"),
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
    "precision": (foreign, {"precision": "int4"}, "precision: expected one of float32, float16, bfloat16, int8, got"),
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


class Ahead(Foreign):
    """Reads the next word of its own sequence, outside attention."""

    def forward(self, words: Tensor, places: Tensor, slots: Tensor, rows: Tensor) -> Tensor:
        is_last = torch.cat([places[1:] == 0, torch.ones(1, dtype=torch.bool)])
        return super().forward(torch.where(is_last, words, words.roll(-1)), places, slots, rows)


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


def test_causal_attention_beside_rows_that_look_ahead_is_refused() -> None:
    model = foreign(Ahead).eval()
    layers = find_layers(model, INTERFACE, EXAMPLE)
    subject = Subject(module=model, interface=INTERFACE, layers=layers, precision="float32")
    with pytest.raises(ModuleError, match="module: its attention is causal, but answers depend on later steps"):
        record_golden(copy.deepcopy(model).double(), subject)


@pytest.mark.parametrize(
    ("given", "got"),
    [
        (None, "NoneType"),
        (Foreign, "the class Foreign"),
        (len, "builtin_"),
        (nn.Linear(1, 1, device="meta"), "weight on"),
    ],
)
def test_what_is_no_module_is_refused(tmp_path: Path, given: Any, got: str) -> None:
    told = {"task": "next_token", "max_length": MAX_LENGTH, "vocabulary_size": WORDS}
    with pytest.raises(ValueError, match=f"module: expected .*, got {got}"):
        export_module(given, EXAMPLE, destination=tmp_path / "foreign" / "1", **told)


class Branching(Foreign):
    """Decides by a number, which no graph can follow."""

    def pick(self, x: Tensor, rows: Tensor) -> Tensor:
        return x[rows] if x.sum() > 0 else -x[rows]


def test_what_torch_cannot_trace_is_refused_in_a_line(tmp_path: Path) -> None:
    told = {"task": "next_token", "max_length": MAX_LENGTH, "vocabulary_size": WORDS}
    with pytest.raises(ModuleError, match=r"module: torch cannot trace it: .+") as caught:
        export_module(foreign(Branching), EXAMPLE, destination=tmp_path / "foreign" / "1", **told)
    assert len(str(caught.value).splitlines()) == 1
    assert list(tmp_path.iterdir()) == []

import re
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from attnserve.interface import Interface
from attnserve.models import AttentionConfig, Transformer, TransformerConfig
from attnserve.models.attention.recording import recorded_outputs
from attnserve.models.prediction import predict_packed
from attnserve.packing import add_leading_row, pack

LAYERS = (AttentionConfig(variant="expressive"), AttentionConfig(variant="elliptical", scope="sequence", scaling="max"))
NEXT = {"vocabulary_size": 7}
TOKEN = {"task": "classify_token", "num_classes": 4}
SEQUENCE = {"task": "classify_sequence", "num_classes": 4}
FEATURES = {"num_features": 3}
FIRST = SEQUENCE | FEATURES | {"pooling": "first"}
LENGTHS = (3, 1, 5)


def model_of(changes: dict[str, Any]) -> Transformer:
    fields = {"max_length": 5, "width": 8, "num_heads": 2, "attention": LAYERS, "causal": False, "bias": True}
    model = Transformer(TransformerConfig(**fields | changes), seed=1).double().eval()
    generator = torch.Generator().manual_seed(2)
    for parameter in model.parameters():
        if parameter.ndim == 1:
            parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator).double()
    return model


def sequences_of(model: Transformer, *lengths: int) -> list[np.ndarray]:
    random = np.random.default_rng(0)
    size = model.config.num_features
    if size is None:
        return [random.integers(0, 7, length) for length in lengths]
    return [random.normal(size=(length, size)).astype(np.float32) for length in lengths]


def by_hand(model: Transformer, rows: Tensor) -> Tensor:
    """The answer made of the last block's rows of one sequence."""
    rows, task, pooling = model.final_norm(rows), model.config.task, model.config.pooling
    if task == "next_token":
        return model.unembedding(rows)
    if task == "classify_token":
        return model.classifier(rows)
    step = {"first": rows[:1], "last": rows[-1:], "mean": rows.sum(0, keepdim=True) / len(rows)}[pooling]
    return model.classifier(step)


@pytest.mark.parametrize(
    "changes",
    [
        NEXT,
        NEXT | TOKEN,
        FEATURES | TOKEN,
        *(NEXT | SEQUENCE | {"pooling": pooling} for pooling in ("first", "last", "mean")),
        FIRST,
        *(FEATURES | SEQUENCE | {"pooling": pooling} for pooling in ("last", "mean")),
        FEATURES | SEQUENCE | {"pooling": "mean", "norm": "post", "positions": "rotary"},
    ],
    ids=lambda changes: " ".join(map(str, changes.values())),
)
@torch.no_grad()
def test_every_sequence_gets_the_answer_of_its_rows(changes: dict[str, Any]) -> None:
    model = model_of(changes)
    sequences = sequences_of(model, *LENGTHS)
    with recorded_outputs(model.layers) as hidden:
        answers = model.predict(sequences)
    leading = 1 if changes == FIRST else 0
    states = hidden[-1].split([length + leading for length in LENGTHS])
    pooled = model.config.task == "classify_sequence"
    num_outputs = 7 if changes == NEXT else 4
    assert [answer.shape for answer in answers] == [(1 if pooled else length, num_outputs) for length in LENGTHS]
    for sequence, answer, rows in zip(sequences, answers, states, strict=True):
        torch.testing.assert_close(answer, by_hand(model, rows), rtol=0, atol=1e-12)
        torch.testing.assert_close(answer, model.predict([sequence])[0], rtol=0, atol=1e-12)
        torch.testing.assert_close(answer, model.predict([sequence.tolist()])[0], rtol=0, atol=1e-12)


@torch.no_grad()
def test_the_leading_row_is_a_vector_of_the_model_at_step_0() -> None:
    model = model_of(FIRST)
    sequences = sequences_of(model, *LENGTHS)
    packed = pack([add_leading_row(sequence) for sequence in sequences])
    assert packed.starts == [0, 4, 6]
    with recorded_outputs([model.feature_embedding, model.positions]) as (streams):
        expected = torch.cat(model.predict(sequences))
    embedded, positioned = streams
    for sequence, rows in zip(sequences, embedded.split(packed.lengths), strict=True):
        assert torch.equal(rows[0], model.feature_embedding.cls)
        projected = torch.from_numpy(sequence).double() @ model.feature_embedding.projection.weight.T
        torch.testing.assert_close(rows[1:], projected + model.feature_embedding.projection.bias)
    # Steps as they are sent come after it, so the longest of 5 needs a sixth position.
    table = model.positions.table
    assert table.shape == (6, 8)
    torch.testing.assert_close(positioned[6:], embedded[6:] + table)
    # Whatever stands where the model puts its vector is not read.
    inputs = torch.from_numpy(packed.inputs).double()
    inputs[packed.starts] = torch.tensor([1e6, -3.0, 0.5]).double()
    arrays = (torch.from_numpy(array) for array in (packed.positions, packed.slots))
    assert torch.equal(model(inputs, *arrays, torch.tensor(packed.starts)), expected)


def test_only_features_that_are_pooled_at_the_first_step_have_a_leading_row() -> None:
    for changes in (FIRST, FEATURES | TOKEN, FEATURES | SEQUENCE | {"pooling": "mean"}):
        names = model_of(changes).state_dict().keys()
        assert ("feature_embedding.cls" in names) == (changes == FIRST)
        assert "token_embedding.weight" not in names
        assert "classifier.bias" in names
        assert not [name for name in names if name.startswith("unembedding")]


@pytest.mark.parametrize("precision", [torch.float16, torch.bfloat16, torch.float32], ids=str)
@torch.no_grad()
def test_features_are_read_in_the_precision_of_the_model(precision: torch.dtype) -> None:
    model = model_of(FEATURES | SEQUENCE | {"pooling": "mean"})
    (sequence,) = sequences_of(model, 5)
    exact = model.predict([sequence])[0]
    answer = model.to(precision).predict([sequence])[0]
    assert answer.dtype == precision
    torch.testing.assert_close(answer.double(), exact, rtol=0, atol=0.1)


class Recorder(nn.Module):
    """Somebody else's module: it keeps what it is called with and answers with numbers of rows."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1, dtype=torch.float64))

    def forward(self, *arguments: Tensor) -> Tensor:
        self.arguments = arguments
        inputs, _, slots, *rows = arguments
        answered = rows[0] if rows else slots[:, 0]
        return torch.stack([answered, answered + len(inputs)], 1)


@pytest.mark.parametrize(
    ("fields", "rows", "answers"),
    [
        ({"task": "classify_token"}, [0, 1, 2, 3], [[0, 1, 2], [3]]),
        ({"task": "classify_sequence", "pooling": "first"}, [0, 3], [[0], [3]]),
        ({"task": "classify_sequence", "pooling": "last"}, [2, 3], [[2], [3]]),
        ({"task": "classify_sequence", "pooling": "mean"}, None, [[0], [3]]),
    ],
    ids=["token", "first", "last", "mean"],
)
def test_a_module_is_called_as_its_interface_says(
    fields: dict[str, Any], rows: list[int] | None, answers: list[list[int]]
) -> None:
    module = Recorder()
    interface = Interface(max_length=4, num_features=2, num_classes=2, **fields)
    sequences = [np.ones((length, 2), np.float32) for length in (3, 1)]
    answered = predict_packed(module, interface, sequences)
    assert [answer[:, 0].tolist() for answer in answered] == answers
    inputs, positions, slots, *rest = module.arguments
    assert (inputs.dtype, inputs.shape) == (torch.float64, (4, 2))
    assert positions.tolist() == [0, 1, 2, 0]
    assert slots.tolist() == [[0, 1, 2], [3, 4, 4]]
    assert [tensor.tolist() for tensor in rest] == ([] if rows is None else [rows])


@pytest.mark.parametrize(
    ("sequences", "message"),
    [
        ([], "sequences: expected at least one, got none"),
        ([[1], []], "sequences[1]: expected a list of 1 to 5 ids, got shape [0]"),
        ([[1] * 6], "sequences[0]: expected a list of 1 to 5 ids, got shape [6]"),
        ([[[1, 2]]], "sequences[0]: expected a list of 1 to 5 ids, got shape [1, 2]"),
        ([[1], [1, [2]]], "sequences[1]: expected a list of 1 to 5 ids, got others"),
        ([[1, 7]], "sequences[0]: expected integers from 0 to 6, got others"),
        ([[-1]], "sequences[0]: expected integers from 0 to 6, got others"),
        ([[1.0]], "sequences[0]: expected integers from 0 to 6, got others"),
        ([["1"]], "sequences[0]: expected integers from 0 to 6, got others"),
        ([[10**400]], "sequences[0]: expected integers from 0 to 6, got others"),
    ],
    ids=lambda value: None if isinstance(value, str) else str(value)[:20],
)
def test_predict_refuses_what_are_no_ids(sequences: list[list[Any]], message: str) -> None:
    with pytest.raises(ValueError, match="^" + re.escape(message) + "$"):
        model_of(NEXT).predict(sequences)


FINE = np.ones((2, 3), np.float32)
NOT_NUMBERS = "expected rows of 3 numbers, got others"
NOT_FINITE = "expected finite float32 numbers, got NaN or infinity"


@pytest.mark.parametrize(
    ("sequence", "message"),
    [
        ([], "expected 1 to 5 rows of 3 numbers, got shape [0]"),
        ([1.0, 2.0, 3.0], "expected 1 to 5 rows of 3 numbers, got shape [3]"),
        (FINE[:, :2], "expected 1 to 5 rows of 3 numbers, got shape [2, 2]"),
        (FINE[:0], "expected 1 to 5 rows of 3 numbers, got shape [0, 3]"),
        (FINE[None], "expected 1 to 5 rows of 3 numbers, got shape [1, 2, 3]"),
        (np.ones((6, 3), np.float32), "expected 1 to 5 rows of 3 numbers, got shape [6, 3]"),
        ([[1, 2, 3], [4, 5]], NOT_NUMBERS),
        ([["1", "2", "3"]], NOT_NUMBERS),
        ([[True, False, True]], NOT_NUMBERS),
        ([[1, 2, None]], NOT_NUMBERS),
        ([[1, 2, 10**400]], NOT_NUMBERS),
        (FINE * 1j, NOT_NUMBERS),
        ([[1, 2, float("nan")]], NOT_FINITE),
        (FINE * np.inf, NOT_FINITE),
        # Finite, but not in float32.
        ([[1, 2, 1e300]], NOT_FINITE),
    ],
    ids=[
        *("empty", "flat", "narrow", "no rows", "deep", "long", "ragged", "text", "boolean", "null", "huge"),
        *("complex", "nan", "infinity", "too large"),
    ],
)
@pytest.mark.parametrize("changes", [FIRST, FEATURES | TOKEN], ids=["leading row", "none"])
def test_predict_refuses_what_are_no_features(changes: dict[str, Any], sequence: Any, message: str) -> None:
    with pytest.raises(ValueError, match="^" + re.escape(f"sequences[1]: {message}") + "$"):
        model_of(changes).predict([FINE, sequence])


@pytest.mark.parametrize("kind", [np.float16, np.float64, np.int8, np.uint64], ids=lambda kind: kind.__name__)
def test_numbers_of_any_type_are_features(kind: type) -> None:
    model = model_of(FIRST)
    assert torch.equal(model.predict([FINE.astype(kind)])[0], model.predict([FINE])[0])


def test_what_is_no_sequence_is_refused_by_name() -> None:
    """In a process without the type hooks of these tests."""
    code = """
from attnserve.models import AttentionConfig, Transformer, TransformerConfig

model = Transformer(TransformerConfig(
    num_features=2, max_length=4, width=4, num_heads=1, attention=(AttentionConfig(),), task="classify_token",
    num_classes=2,
))
for wrong in ([1.0, 2.0], "text", [{1}], [None]):
    try:
        model.predict(wrong)
    except ValueError as error:
        print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.splitlines() == [
        "sequences[0]: expected 1 to 4 rows of 2 numbers, got shape []",
        "sequences[0]: expected rows of 2 numbers, got others",
        "sequences[0]: expected rows of 2 numbers, got others",
        "sequences[0]: expected rows of 2 numbers, got others",
    ], done.stderr

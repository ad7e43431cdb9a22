import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from attnserve.models import Attention, AttentionConfig, Transformer, TransformerConfig, layers_of
from attnserve.models.attention import VARIANTS
from attnserve.models.config import ACTIVATIONS, POSITIONS
from attnserve.models.transformer import ACTIVATIONS as FUNCTIONS
from attnserve.packing import pack

ROOT = Path(__file__).parents[2]
MIXED = (
    AttentionConfig(variant="expressive"),
    AttentionConfig(variant="elliptical", scope="prefix", scaling="mean"),
    AttentionConfig(),
)


def config(**changes: object) -> TransformerConfig:
    fields = {"vocabulary_size": 7, "max_length": 9, "width": 8, "num_heads": 2, "attention": MIXED}
    return TransformerConfig(**(fields | changes))  # type: ignore[arg-type]


def feeds(*lengths: int) -> tuple[Tensor, Tensor, Tensor]:
    random = np.random.default_rng(0)
    packed = pack([random.integers(0, 7, length) for length in lengths])
    return torch.from_numpy(packed.tokens), torch.from_numpy(packed.positions), torch.from_numpy(packed.slots)


def documented_tensors(made_of: TransformerConfig) -> dict[str, list[int]]:
    """The tensor table of docs/checkpoint.md, for this config."""
    table = (ROOT / "docs" / "checkpoint.md").read_text("utf-8").split("## model.safetensors")[1].split("\n## ")[0]
    rows = re.findall(r"^\| `(.+?)` \| \[(.+?)\] \| (.+?) \|$", table, re.MULTILINE)
    assert len(rows) == 24
    sizes = {
        "W": made_of.vocabulary_size,
        "P": made_of.max_length,
        "D": made_of.width,
        "F": made_of.mlp_size,
        "E / 2": made_of.head_size // 2,
    }
    present = {"always", "`bias`"} if made_of.bias else {"always"}
    present.add('`positions` is `"rotary"`' if made_of.positions == "rotary" else "")
    if made_of.positions in ("orthogonal", "learned"):
        present.add('`positions` is `"orthogonal"` or `"learned"`')
    return {
        name.replace("{l}", str(layer)): [sizes[letter] for letter in shape.split(", ")]
        for name, shape, when in rows
        if when in present
        for layer in range(made_of.num_layers)
    }


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("positions", POSITIONS)
def test_tensors_are_those_of_the_documentation(positions: str, bias: bool) -> None:
    made_of = config(positions=positions, bias=bias, mlp_ratio=2.0)
    tensors = Transformer(made_of).state_dict()
    assert {name: list(tensor.shape) for name, tensor in tensors.items()} == documented_tensors(made_of)
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float32}


def test_a_seed_makes_the_weights_and_nothing_else() -> None:
    torch.manual_seed(5)
    undisturbed = torch.rand(1)
    torch.manual_seed(5)
    first, same, other = (Transformer(config(), seed=seed).state_dict() for seed in (1, 1, 2))
    assert torch.equal(torch.rand(1), undisturbed)
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert not torch.equal(first["unembedding.weight"], other["unembedding.weight"])
    assert not torch.equal(first["positions.table"], other["positions.table"])


@pytest.mark.parametrize("rows", [[], [3], [0, 5, 6], [6, 1, 1]], ids=str)
def test_logits_are_those_of_the_rows_asked_for(rows: list[int]) -> None:
    model = Transformer(config())
    every = model(*feeds(5, 2), torch.arange(7)).logits
    assert every.shape == (7, 7)
    some = model(*feeds(5, 2), torch.tensor(rows, dtype=torch.int64)).logits
    torch.testing.assert_close(some, every[rows])
    assert some.shape == (len(rows), 7)


def test_hidden_is_the_stream_after_every_block() -> None:
    model = Transformer(config())
    output = model(*feeds(5, 2), torch.arange(7))
    assert [state.shape for state in output.hidden] == [(7, 8)] * 3
    assert torch.equal(model.unembedding(model.final_norm(output.hidden[-1])), output.logits)


@torch.no_grad()
def test_blocks_are_pre_norm_and_residual() -> None:
    model = Transformer(config(bias=True))
    tokens, positions, slots = feeds(5)
    embedded = model.token_embedding.weight[tokens] + model.positions.table[positions]
    block = model.layers[0]
    # Attention switched off leaves x + mlp(norm(x)); both off leave x.
    for parameter in block.attention.output.parameters():
        parameter.zero_()
    hidden = model(tokens, positions, slots, tokens[:0]).hidden
    torch.testing.assert_close(hidden[0], embedded + block.mlp(block.mlp_norm(embedded)))
    for parameter in block.mlp.down.parameters():
        parameter.zero_()
    hidden = model(tokens, positions, slots, tokens[:0]).hidden
    assert torch.equal(hidden[0], embedded)


@torch.no_grad()
def test_each_layer_gets_the_values_of_the_one_before() -> None:
    model = Transformer(config())
    values: list[Tensor] = []
    previous: list[Tensor | None] = []

    def record(module: Attention, arguments: tuple[Tensor, ...], options: dict[str, Tensor | None]) -> None:
        values.append(arguments[2])
        previous.append(options["previous_value"])

    for block in model.layers:
        block.attention.attention.register_forward_pre_hook(record, with_kwargs=True)
    model(*feeds(4, 3), torch.arange(0))
    assert previous[0] is None
    assert previous[1] is values[0]
    assert previous[2] is values[1]


@torch.no_grad()
def test_head_scale_is_a_factor_on_each_head_s_output() -> None:
    model = Transformer(config())
    plain = model(*feeds(5, 2), torch.arange(7)).logits
    ones = torch.ones(3, 2)
    assert torch.equal(model(*feeds(5, 2), torch.arange(7), ones).logits, plain)
    ones[1, 1] = 0
    ablated = model(*feeds(5, 2), torch.arange(7), ones).logits
    assert not torch.equal(ablated, plain)
    # Head 1 writes through columns 4 to 7 of the output projection.
    model.layers[1].attention.output.weight[:, 4:] = 0
    torch.testing.assert_close(model(*feeds(5, 2), torch.arange(7)).logits, ablated)


@torch.no_grad()
def test_predict_gives_every_sequence_its_logits() -> None:
    model = Transformer(config())
    sequences = [[1, 2, 3], [4], np.array([0, 6])]
    answers = model.predict(sequences)
    assert [answer.shape for answer in answers] == [(3, 7), (1, 7), (2, 7)]
    for sequence, answer in zip(sequences, answers, strict=True):
        torch.testing.assert_close(answer, model.predict([sequence])[0])


DOCUMENTED_ACTIVATIONS = {
    "gelu": lambda x: x * (1 + math.erf(x / math.sqrt(2))) / 2,
    "gelu_tanh": lambda x: x / 2 * (1 + math.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    "relu": lambda x: max(x, 0.0),
    "silu": lambda x: x / (1 + math.exp(-x)),
}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_are_the_documented_formulas(name: str) -> None:
    x = torch.linspace(-6, 6, 49, dtype=torch.float64)
    expected = torch.tensor([DOCUMENTED_ACTIVATIONS[name](float(value)) for value in x], dtype=torch.float64)
    torch.testing.assert_close(FUNCTIONS[name](x), expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize("bias", [True, False])
def test_norms_are_the_documented_formula(bias: bool) -> None:
    made_of = config(bias=bias, norm_epsilon=0.1)
    model = Transformer(made_of).double()
    for norm in (model.final_norm, model.layers[0].attention_norm, model.layers[0].mlp_norm):
        generator = torch.Generator().manual_seed(0)
        for parameter in norm.parameters():
            parameter.data = torch.randn(8, generator=generator, dtype=torch.float64)
        x = torch.randn(8, generator=generator, dtype=torch.float64)
        mean = x.sum() / 8
        variance = ((x - mean) ** 2).sum() / 8
        expected = norm.weight * (x - mean) / torch.sqrt(variance + 0.1) + (norm.bias if bias else 0)
        torch.testing.assert_close(norm(x), expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_model_learns_its_batch(variant: str) -> None:
    options = {"scope": "prefix", "scaling": "max"} if VARIANTS[variant].metric_op else {}
    layers = (AttentionConfig(), AttentionConfig(variant=variant, **options))
    model = Transformer(config(width=16, attention=layers))
    tokens, positions, slots = feeds(8, 5)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(30):
        logits = model(tokens, positions, slots, torch.arange(13)).logits
        # Each token's own successor within the batch; where sequences meet, any target will do.
        loss = torch.nn.functional.cross_entropy(logits, tokens.roll(-1))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.2 * losses[0]


@pytest.mark.parametrize(
    ("sequences", "message"),
    [
        ([], "sequences: expected at least one, got none"),
        ([[1], []], "sequences[1]: expected a list of 1 to 8 ids, got shape [0]"),
        ([[1] * 9], "sequences[0]: expected a list of 1 to 8 ids, got shape [9]"),
        ([[1, 5]], "sequences[0]: expected integers from 0 to 4, got others"),
        ([[-1]], "sequences[0]: expected integers from 0 to 4, got others"),
    ],
)
def test_predict_refuses_what_are_no_ids(sequences: list[list[int]], message: str) -> None:
    config = TransformerConfig(
        vocabulary_size=5, max_length=8, width=4, num_heads=1, attention=layers_of("expressive", 1)
    )
    with pytest.raises(ValueError, match="^" + re.escape(message)):
        Transformer(config).predict(sequences)

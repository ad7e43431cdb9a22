import math
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from attnserve.models import Attention, AttentionConfig, Transformer, TransformerConfig
from attnserve.models.attention import VARIANTS
from attnserve.models.attention.recording import recorded_outputs
from attnserve.models.config import ACTIVATIONS, POSITIONS
from attnserve.models.transformer import ACTIVATIONS as FUNCTIONS
from attnserve.packing import pack

ROOT = Path(__file__).parents[2]
MIXED = (
    AttentionConfig(variant="expressive"),
    AttentionConfig(variant="elliptical", scope="prefix", scaling="mean"),
    AttentionConfig(),
)

# By the first half of the compiler: the second one needs a C++ compiler and a minute.
COMPILE = """
import torch
from attnserve.models import AttentionConfig, Transformer, TransformerConfig
from attnserve.packing import pack

layers = [{"variant": "expressive"}, {"variant": "elliptical", "scope": "prefix", "scaling": "mean"}, {}]
attention = tuple(AttentionConfig(**layer) for layer in layers)
model = Transformer(TransformerConfig(vocabulary_size=7, max_length=9, width=8, num_heads=2, attention=attention))
compiled = torch.compile(model, backend="eager", dynamic=True, fullgraph=True)
for lengths in ((5,), (3, 9, 4), (8, 2)):
    packed = pack([torch.arange(length).remainder(7).numpy() for length in lengths])
    feeds = [torch.from_numpy(array) for array in (packed.inputs, packed.positions, packed.slots)]
    rows = torch.arange(sum(lengths))
    torch.testing.assert_close(compiled(*feeds, rows), model(*feeds, rows))
"""


def config(**changes: object) -> TransformerConfig:
    fields = {"vocabulary_size": 7, "max_length": 9, "width": 8, "num_heads": 2, "attention": MIXED}
    return TransformerConfig(**(fields | changes))  # type: ignore[arg-type]


def randomised(model: Transformer) -> Transformer:
    """Gains of 1 and biases of 0 would hide a norm or a bias that is forgotten."""
    generator = torch.Generator().manual_seed(2)
    for parameter in model.parameters():
        if parameter.ndim == 1:
            parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator).to(parameter.dtype)
    return model


def feeds(*lengths: int) -> tuple[Tensor, Tensor, Tensor]:
    random = np.random.default_rng(0)
    packed = pack([random.integers(0, 7, length) for length in lengths])
    return torch.from_numpy(packed.inputs), torch.from_numpy(packed.positions), torch.from_numpy(packed.slots)


def is_present(when: str, made_of: TransformerConfig) -> bool:
    """Read a cell of the column "present" of docs/checkpoint.md."""
    prose = {
        "always": True,
        "the model reads ids": made_of.vocabulary_size is not None,
        "the model reads features": made_of.num_features is not None,
        "there is a leading row": made_of.num_features is not None and made_of.pooling == "first",
        "a classify task": made_of.task.startswith("classify_"),
        "`bias`": made_of.bias,
        "not `tied_embeddings`": not made_of.tied_embeddings,
    }

    def holds(condition: str) -> bool:
        field, is_one_of, choices = condition.strip("`").partition("` is ")
        return getattr(made_of, field) in re.findall(r'"(\w+)"', choices) if is_one_of else prose[condition]

    return all(holds(condition) for condition in when.split(", and "))


def documented_tensors(made_of: TransformerConfig) -> dict[str, list[int]]:
    """The tensor table of docs/checkpoint.md, for this config."""
    table = (ROOT / "docs" / "checkpoint.md").read_text("utf-8").split("## model.safetensors")[1].split("\n## ")[0]
    rows = re.findall(r"^\| `(.+?)` \| \[(.+?)\] \| (.+?) \|$", table, re.MULTILINE)
    assert len(rows) == table.count("\n| `") >= 24
    sizes = {
        "W": made_of.vocabulary_size,
        "X": made_of.num_features,
        "C": made_of.num_classes,
        "P": made_of.num_positions,
        "D": made_of.width,
        "F": made_of.mlp_size,
        "H": made_of.num_heads,
        "K": made_of.num_key_heads,
        "E": made_of.head_size,
    }
    return {
        name.replace("{l}", str(layer)): [int(eval(size, {}, sizes)) for size in shape.split(", ")]
        for name, shape, when in rows
        if is_present(when, made_of)
        for layer in range(made_of.num_layers)
    }


FEATURES = {"vocabulary_size": None, "num_features": 3, "num_classes": 5, "causal": False}


@pytest.mark.parametrize("bias", [True, False], ids=["biases", "no biases"])
@pytest.mark.parametrize(
    "changes",
    [
        *({"positions": positions} for positions in POSITIONS),
        {"tied_embeddings": True},
        {"norm": "post"},
        {"num_key_heads": 1, "head_size": 6},
        {"num_key_heads": 1, "head_size": 6, "positions": "rotary"},
        {"task": "classify_token", "num_classes": 5},
        FEATURES | {"task": "classify_token"},
        FEATURES | {"task": "classify_sequence", "pooling": "first"},
        FEATURES | {"task": "classify_sequence", "pooling": "mean", "positions": "rotary"},
    ],
    ids=lambda changes: " ".join(map(str, changes.values())),
)
def test_tensors_are_those_of_the_documentation(changes: dict[str, object], bias: bool) -> None:
    layers = (AttentionConfig(),) if "causal" in changes else MIXED
    made_of = config(bias=bias, mlp_ratio=2.0, attention=layers, **changes)
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
    every = model(*feeds(5, 2), torch.arange(7))
    assert every.shape == (7, 7)
    some = model(*feeds(5, 2), torch.tensor(rows, dtype=torch.int64))
    torch.testing.assert_close(some, every[rows])
    assert some.shape == (len(rows), 7)


@torch.no_grad()
def test_logits_are_of_the_normed_stream_after_the_last_block() -> None:
    model = Transformer(config(bias=True))
    with recorded_outputs(model.layers) as hidden:
        logits = model(*feeds(5, 2), torch.arange(7))
    assert [state.shape for state in hidden] == [(7, 8)] * 3
    assert torch.equal(model.unembedding(model.final_norm(hidden[-1])), logits)


@torch.no_grad()
def stream_of(model: Transformer, tokens: Tensor, positions: Tensor, slots: Tensor) -> list[Tensor]:
    """Of no row are logits wanted."""
    with recorded_outputs(model.layers) as hidden:
        assert model(tokens, positions, slots, tokens[:0]).shape == (0, 7)
    return hidden


@torch.no_grad()
def test_blocks_are_pre_norm_and_residual() -> None:
    model = Transformer(config(bias=True))
    tokens, positions, slots = feeds(5)
    embedded = model.token_embedding.weight[tokens] + model.positions.table[positions]
    block = model.layers[0]
    # Attention switched off leaves x + mlp(norm(x)); both off leave x.
    for parameter in block.attention.output.parameters():
        parameter.zero_()
    hidden = stream_of(model, tokens, positions, slots)
    torch.testing.assert_close(hidden[0], embedded + block.mlp(block.mlp_norm(embedded)))
    for parameter in block.mlp.down.parameters():
        parameter.zero_()
    hidden = stream_of(model, tokens, positions, slots)
    assert torch.equal(hidden[0], embedded)


def normed(x: Tensor, norm: torch.nn.LayerNorm) -> Tensor:
    """docs/checkpoint.md, norm."""
    centred = x - x.mean(-1, keepdim=True)
    scaled = centred / torch.sqrt((centred**2).mean(-1, keepdim=True) + norm.eps)
    return norm.weight * scaled + (0 if norm.bias is None else norm.bias)


@pytest.mark.parametrize("bias", [True, False])
@torch.no_grad()
def test_post_norm_blocks_norm_what_they_added(bias: bool) -> None:
    model = randomised(Transformer(config(norm="post", bias=bias)).double())
    tokens, positions, slots = feeds(5, 2)
    stream, value = model.token_embedding.weight[tokens] + model.positions.table[positions], None
    with recorded_outputs(model.layers) as hidden:
        logits = model(tokens, positions, slots, torch.arange(7))
    for block, expected in zip(model.layers, hidden, strict=True):
        attended, value = block.attention(stream, slots, value, None)
        stream = normed(stream + attended, block.attention_norm)
        stream = normed(stream + block.mlp(stream), block.mlp_norm)
        torch.testing.assert_close(expected, stream, rtol=0, atol=1e-12)
    # The stream is normed already: there is no norm before the logits, and no tensor of one.
    torch.testing.assert_close(logits, model.unembedding(stream), rtol=0, atol=1e-12)
    assert not [name for name in model.state_dict() if name.startswith("final_norm")]


@pytest.mark.parametrize("bias", [True, False])
def test_tied_embeddings_are_one_tensor(bias: bool) -> None:
    model = randomised(Transformer(config(tied_embeddings=True, bias=bias)))
    untied = Transformer(config(bias=bias))
    assert set(untied.state_dict()) - set(model.state_dict()) == {"unembedding.weight"}
    embedding = model.token_embedding.weight
    assert sum(parameter is embedding for parameter in model.parameters()) == 1
    with recorded_outputs([model.final_norm]) as normed_rows:
        logits = model(*feeds(5, 2), torch.arange(7))
    shift = model.unembedding.bias if bias else 0
    torch.testing.assert_close(logits, normed_rows[0] @ embedding.T + shift)
    # An untied model whose two tensors are equal says the same.
    untied.load_state_dict(model.state_dict() | {"unembedding.weight": embedding})
    torch.testing.assert_close(untied(*feeds(5, 2), torch.arange(7)), logits)
    # And is trained as both: a token that is read nowhere has a gradient too.
    model(torch.tensor([3]), torch.tensor([0]), torch.tensor([[0]]), torch.tensor([0])).square().sum().backward()
    assert (embedding.grad.abs().sum(1) > 0).all()


@pytest.mark.parametrize("num_key_heads", [1, 2])
@pytest.mark.parametrize("positions", ["orthogonal", "rotary"])
@torch.no_grad()
def test_grouped_heads_are_repeated_keys_and_values(num_key_heads: int, positions: str) -> None:
    sizes = {"num_heads": 4, "head_size": 6, "positions": positions, "bias": True}
    grouped = randomised(Transformer(config(num_key_heads=num_key_heads, **sizes)).double())
    repeated = Transformer(config(**sizes)).double()
    tensors = {
        name: tensor.unflatten(0, (num_key_heads, 6)).repeat_interleave(4 // num_key_heads, 0).flatten(0, 1)
        if re.search(r"\.attention\.(key|value)\.", name)
        else tensor
        for name, tensor in grouped.state_dict().items()
    }
    assert grouped.state_dict()["layers.0.attention.key.weight"].shape == (6 * num_key_heads, 8)
    repeated.load_state_dict(tensors)
    expected = repeated(*feeds(5, 2), torch.arange(7))
    torch.testing.assert_close(grouped(*feeds(5, 2), torch.arange(7)), expected, rtol=0, atol=1e-12)


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
        logits = model(tokens, positions, slots, torch.arange(13))
        # Each token's own successor within the batch; where sequences meet, any target will do.
        loss = torch.nn.functional.cross_entropy(logits, tokens.roll(-1))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.2 * losses[0]


def test_a_model_compiles_as_one_graph() -> None:
    # In a process of its own: here types are checked while functions run, which nothing can compile.
    done = subprocess.run([sys.executable, "-c", COMPILE], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr

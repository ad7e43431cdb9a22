"""int8 weights: which are rounded, what they become, and that nothing else is, activations least of all."""

import copy
import dataclasses
import json
import re
import shutil
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, numpy_helper
from onnx.reference import ReferenceEvaluator
from torch import Tensor, nn
from torch.nn import functional

from attnserve.bundle import MODEL_DATA_FILE, MODEL_FILE, hash_files, read_manifest, write_manifest
from attnserve.cli import main
from attnserve.export import export_module
from attnserve.export.quantisation import quantise_weights, round_rows
from attnserve.export.subject import ModuleError
from attnserve.golden import read_golden, replay
from attnserve.models import Attention
from attnserve.models.checkpoint import CheckpointError, load_checkpoint
from attnserve.packing import pack
from attnserve.runtime import Runtime
from attnserve.sessions import open_session
from tests.export.conftest import widened_weights
from tests.export.foreign import EXAMPLE, EXPRESSIVE, MAX_LENGTH, SIZE, WIDTH, WORDS

pytestmark = pytest.mark.export

WEIGHT = "module.weight"
FEEDS = {
    "x": np.random.default_rng(0).normal(size=(7, 4)).astype(np.float32),
    "tokens": np.array([3, 0, 3, 1, 2, 3, 0]),
    "positions": np.arange(7) % 4,
}


class Weighted(nn.Module):
    """A parameter, and a buffer of the same numbers."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        numbers = np.random.default_rng(1).normal(size=shape).astype(np.float32)
        self.weight = nn.Parameter(torch.from_numpy(numbers))
        self.register_buffer("table", torch.from_numpy(numbers.copy()))


def graph_of(module: Weighted, nodes: str, **others: Any) -> onnx.ModelProto:
    """A graph with the tensors of `module`; `W` in the text is its weight, `B` its buffer, and `y` the output."""
    names = {"W": f'"{WEIGHT}"', "B": '"module.table"'}
    nodes = re.sub(r"\b[WB]\b", lambda found: names[found[0]], nodes)
    inputs = "float[T,4] x, int64[T] tokens, int64[T] positions"
    text = f'<ir_version: 9, opset_import: ["" : 20]> g ({inputs}) => (float[M,K] y) {{{nodes}}}'
    model = onnx.parser.parse_model(text)
    arrays = {f"module.{name}": tensor.numpy() for name, tensor in module.state_dict().items()} | others
    model.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in arrays.items())
    return model


def run(model: onnx.ModelProto, optimised: Path | None = None) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if optimised is not None:
        options.optimized_model_filepath = str(optimised)
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, FEEDS)[0]


def stored(model: onnx.ModelProto, name: str) -> np.ndarray:
    (tensor,) = (one for one in model.graph.initializer if one.name == name)
    return numpy_helper.to_array(tensor)


# Shape of the weight, nodes, and whether its output channels are its columns.
ROUNDED: dict[str, tuple[tuple[int, int], str, bool]] = {
    "Linear": ((6, 4), "y = Gemm<transB=1>(x, W)", False),
    "Linear with a bias": ((6, 4), "y = Gemm<transB=1, beta=1.0>(x, W, bias)", False),
    "Linear of more dimensions": (
        (6, 4),
        "t = Transpose<perm=[1,0]>(W) x3 = Unsqueeze(x, zero) y3 = MatMul(x3, t) y = Squeeze(y3, zero)",
        False,
    ),
    "columns": ((4, 6), "y = MatMul(x, W)", True),
    "columns of a Gemm": ((4, 6), "y = Gemm(x, W)", True),
    "columns of more dimensions": ((4, 6), "x3 = Unsqueeze(x, zero) y3 = MatMul(x3, W) y = Squeeze(y3, zero)", True),
    "square columns": ((4, 4), "y = MatMul(x, W)", True),
    "table of tokens": ((5, 4), "y = Gather(W, tokens)", False),
    "tied": ((5, 4), "e = Gather<axis=0>(W, tokens) h = Add(e, x) y = Gemm<transB=1>(h, W)", False),
    "tied, transposed": ((5, 4), "e = Gather(W, tokens) t = Transpose<perm=[1,0]>(W) y = MatMul(e, t)", False),
    "shared": ((4, 4), "h = Gemm<transB=1>(x, W) y = Gemm<transB=1>(h, W)", False),
    "both ways": ((4, 4), "h = Gemm<transB=1>(x, W) y = MatMul(h, W)", False),
}


@pytest.mark.parametrize(("shape", "nodes", "is_turned"), ROUNDED.values(), ids=ROUNDED)
def test_what_is_rounded_and_what_it_then_is(
    tmp_path: Path, shape: tuple[int, int], nodes: str, is_turned: bool
) -> None:
    module, others = Weighted(*shape), {"zero": np.array([0]), "bias": np.arange(6, dtype=np.float32)}
    before = module.weight.detach().clone()
    model = graph_of(module, nodes, **others)
    exact = run(model)
    quantise_weights(model, module)
    onnx.checker.check_model(model, full_check=True)
    integers, scale = stored(model, WEIGHT), stored(model, f"{WEIGHT}.scale")
    assert (integers.dtype, scale.dtype) == (np.int8, np.float32)
    rows = before.T if is_turned else before
    assert integers.shape == rows.shape
    np.testing.assert_allclose(scale, rows.abs().amax(1) / 127)
    meant = integers * scale[:, None]
    # The module's numbers are the file's, to the last bit.
    np.testing.assert_array_equal(module.weight.detach().numpy(), meant.T if is_turned else meant)
    assert 0 < (module.weight - before).abs().max() <= 0.501 * scale.max()
    # So is what is computed with them: a float32 graph with the module's weights gives the same.
    found, expected = run(model, tmp_path / "optimised.onnx"), run(graph_of(module, nodes, **others))
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)
    assert np.abs(found - exact).max() > 1e-3
    np.testing.assert_allclose(ReferenceEvaluator(model).run(None, FEEDS)[0], expected, rtol=1e-6, atol=1e-6)
    # ONNX Runtime neither widens them once and for all nor multiplies them with rounded activations.
    kept = onnx.load(tmp_path / "optimised.onnx").graph
    assert [one.name for one in kept.initializer if one.data_type == TensorProto.INT8] == [WEIGHT]
    assert {node.op_type for node in kept.node} <= {
        *("DequantizeLinear", "Gemm", "FusedMatMul", "MatMul", "Transpose", "Gather", "Add", "Squeeze", "Unsqueeze")
    }


def test_a_table_of_tokens_is_never_widened_as_a_whole() -> None:
    module = Weighted(5, 4)
    model = graph_of(module, "y = Gather(W, tokens)")
    quantise_weights(model, module)
    assert [node.op_type for node in model.graph.node] == ["Gather", "Gather", "DequantizeLinear"]


KEPT: dict[str, str] = {
    "multiplied by number": "w = Mul(W, W) h = Gemm<transB=1>(x, W) y = Gemm<transB=1>(h, w)",
    "on the left": "y = MatMul(W, W)",
    "looked up by position": "p = Gather(W, positions) y = Gemm<transB=1>(p, W)",
    "looked up by column": "c = Gather<axis=1>(W, positions) y = Gemm<transB=1>(x, W)",
    "transposed for something else": "t = Transpose<perm=[1,0]>(W) h = MatMul(x, t) y = Add(h, t)",
    "transposed to itself": "t = Transpose<perm=[0,1]>(W) y = MatMul(x, t)",
    "a bias": "y = Gemm<transB=1>(x, B, W)",
    "no parameter": "y = Gemm<transB=1>(x, B)",
    "in a branch": """
        c = Cast<to=9>(first) y = If (c) <
            then_branch = one () => (float[T,4] y1) { y1 = MatMul(x, W) },
            else_branch = two () => (float[T,4] y2) { y2 = Gemm(x, W) }
        >""",
}


@pytest.mark.parametrize("nodes", KEPT.values(), ids=KEPT)
def test_whatever_is_read_in_another_way_stays_as_it_is(nodes: str) -> None:
    module = Weighted(4, 4)
    model = graph_of(module, nodes, first=np.array(1))
    before, weight = copy.deepcopy(model), module.weight.detach().clone()
    with pytest.raises(ModuleError, match=r"^module: expected Linear layers whose weights can be rounded to int8"):
        quantise_weights(model, module)
    assert model == before
    assert torch.equal(module.weight, weight)


def test_what_is_an_output_stays_as_it_is() -> None:
    module = Weighted(4, 4)
    model = graph_of(module, "y = Gemm<transB=1>(x, W)")
    model.graph.output.append(onnx.helper.make_tensor_value_info(WEIGHT, TensorProto.FLOAT, [4, 4]))
    with pytest.raises(ModuleError, match="found none"):
        quantise_weights(model, module)


@pytest.mark.parametrize(
    "row",
    [
        [0.0, -0.0, 0.0],
        [1e-45, -1e-45, 0.0],
        [1e-40, 1.0e-41, -1e-40],
        [3.4e38, -3.4e38, 1.0],
        [-127.0, 64.0, 0.5],
        [5.0, 5.0, 5.0],
    ],
    ids=str,
)
def test_every_row_is_as_near_as_integers_come(row: list[float]) -> None:
    exact = np.array([row, [1.0, 2.0, 3.0]], np.float32)
    integers, scale = round_rows("w", exact)
    assert (scale > 0).all()
    assert np.abs(integers.astype(int)).max() <= 127
    widened = integers * scale[:, None]
    assert np.isfinite(widened).all()
    # Subnormal scales have few digits.
    assert (np.abs(widened - exact) <= 0.5001 * scale[:, None] + 1e-42).all()
    # Its largest number is exact, but for the last digit.
    np.testing.assert_allclose(np.abs(widened).max(1), np.abs(exact).max(1), rtol=2e-7, atol=1e-42)


@pytest.mark.parametrize("number", [np.nan, np.inf, -np.inf])
def test_what_is_no_number_has_no_integer(number: float) -> None:
    rows = np.ones((2, 3), np.float32)
    rows[1, 2] = number
    said = "weights: layers.0.mlp.up.weight: expected finite numbers to round to int8, got others"
    with pytest.raises(CheckpointError, match=f"^{re.escape(said)}$"):
        round_rows("layers.0.mlp.up.weight", rows)


def test_products_with_int8_weights_are_float32s_whatever_onnx_runtime_makes_of_them(tmp_path: Path) -> None:
    # Stored as columns it rounds activations too, unless told not to.
    module = Weighted(4, 6)
    integers, scale = round_rows("w", module.weight.detach().numpy().T)
    nodes = "w = DequantizeLinear<axis=1>(integers, scale) y = MatMul(x, w)"
    model = graph_of(module, nodes, integers=np.ascontiguousarray(integers.T), scale=scale)
    onnx.save(model, tmp_path / "columns.onnx")
    truth = FEEDS["x"].astype(np.float64) @ (integers.T * scale.astype(np.float64))
    (found,) = open_session(tmp_path / "columns.onnx", "cpu", 1).run(None, FEEDS)
    np.testing.assert_allclose(found, truth, rtol=0, atol=1e-6)
    # If it does so no longer, there is nothing to tell it.
    assert np.abs(run(model) - truth).max() > 1e-3


@pytest.fixture(scope="module")
def rounded(export_tiny: Any) -> Path:
    """The model of `bundles` in int8. Not to be written to: copy it."""
    return export_tiny(precision="int8")


def types_of(folder: Path) -> dict[str, int]:
    graph = onnx.load(folder / MODEL_FILE).graph
    return {tensor.name: tensor.data_type for tensor in graph.initializer}


def test_all_matrices_of_a_transformer_are_int8_and_all_else_is_as_it_was(rounded: Path, bundles: Path) -> None:
    before, after = types_of(bundles / "tiny" / "1"), types_of(rounded)
    matrices = {
        *("module.token_embedding.weight", "module.unembedding.weight"),
        *(
            f"module.layers.{layer}.{part}.weight"
            for layer in range(3)
            for part in ("query", "key", "value", "output", "up", "down")
            for part in [f"attention.{part}" if part not in ("up", "down") else f"mlp.{part}"]
        ),
    }
    assert {name for name, kind in after.items() if kind == TensorProto.INT8} == matrices
    assert {name: kind for name, kind in after.items() if name not in matrices} == {
        **{name: kind for name, kind in before.items() if name not in matrices},
        **{f"{name}.scale": TensorProto.FLOAT for name in matrices},
    }
    # Captures and logits too.
    one, other = read_manifest(rounded), read_manifest(bundles / "tiny" / "1")
    for name in ("inputs", "outputs", "layers", "labels", "card", "warnings"):
        assert getattr(one, name) == getattr(other, name), name


def test_the_truth_about_a_file_is_that_of_its_weights(
    rounded: Path, bundles: Path, checkpoint: Path, ask_torch: Callable[..., Any]
) -> None:
    model = load_checkpoint(checkpoint).model
    model.load_state_dict(model.state_dict() | widened_weights(rounded))
    golden, exact = read_golden(rounded), read_golden(bundles / "tiny" / "1")
    np.testing.assert_array_equal(golden.inputs, exact.inputs)
    truth = np.concatenate([ask_torch(model, pack([sequence])).logits for sequence in golden.sequences])
    np.testing.assert_allclose(golden.logits, truth[golden.logit_rows], rtol=0, atol=1e-12)


def test_it_is_held_to_what_float32_is_held_to(rounded: Path) -> None:
    certificate, golden = read_manifest(rounded).certificate, read_golden(rounded)
    assert certificate.precision == "int8"
    for deviation, largest, bound in (
        (certificate.logits, np.abs(golden.logits).max(), 5e-5),
        (certificate.maps, 1.0, 1e-4),
    ):
        expected = min(4 * max(deviation.reference, 2.0**-23 * largest), bound * largest)
        assert deviation.allowed == pytest.approx(expected)
        assert 0 < deviation.measured <= deviation.allowed


def test_the_manifest_says_what_rounding_changed(rounded: Path, bundles: Path) -> None:
    found = read_manifest(rounded).quantisation
    after, before = read_golden(rounded).logits, read_golden(bundles / "tiny" / "1").logits
    differences = np.abs(after - before)
    p, q = (np.exp(logits) / np.exp(logits).sum(1, keepdims=True) for logits in (before, after))
    assert dataclasses.asdict(found) == {
        "num_answers": len(before),
        "largest_difference": pytest.approx(differences.max()),
        "mean_difference": pytest.approx(differences.mean()),
        "top1_agreement": pytest.approx((before.argmax(1) == after.argmax(1)).mean()),
        "kl_bits": pytest.approx((p * np.log2(p / q)).sum(1).mean(), rel=1e-6),
    }
    # A model of two hundred times float32's rounding, and the same answers.
    assert 1e-3 < found.largest_difference < 0.1
    assert 0.95 < found.top1_agreement < 1


def test_check_says_it_too(rounded: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", str(rounded)]) == 0
    found = read_manifest(rounded).quantisation
    assert capsys.readouterr().out.endswith(f"within the certificate\n{found.table()}\n")
    assert main(["check", str(rounded), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["quantisation"] == dataclasses.asdict(found)


def test_its_weights_stay_int8_while_it_runs_and_one_is_widened_at_a_time(rounded: Path, tmp_path: Path) -> None:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    onnxruntime.InferenceSession(str(rounded / MODEL_FILE), options, providers=["CPUExecutionProvider"])
    kept = onnx.load(tmp_path / "optimised.onnx").graph
    integers = {name for name, kind in types_of(rounded).items() if kind == TensorProto.INT8}
    assert {one.name for one in kept.initializer if one.data_type == TensorProto.INT8} == integers
    assert not [node.op_type for node in kept.node if "Integer" in node.op_type or "NBits" in node.op_type]
    # In the order in which they run: all of them widened first would take the memory that int8 saves.
    widened = [pair for pair in pairwise(kept.node) if pair[0].op_type == "DequantizeLinear"]
    pairs = [(node, reader) for node, reader in widened if node.input[0] in integers]
    assert len(pairs) == 3 * 6 + 1
    for node, reader in pairs:
        assert reader.op_type == "Gemm"
        assert reader.input[1] == node.output[0]


@pytest.mark.parametrize("name", ["module.layers.1.mlp.up.weight", "module.token_embedding.weight"])
def test_one_wrong_scale_is_noticed(rounded: Path, tmp_path: Path, name: str) -> None:
    folder = Path(shutil.copytree(rounded, tmp_path / "spoiled" / "1"))
    model = onnx.load(folder / MODEL_FILE)
    (tensor,) = (one for one in model.graph.initializer if one.name == f"{name}.scale")
    scale = numpy_helper.to_array(tensor).copy()
    scale[3] *= 1.01
    tensor.CopyFrom(numpy_helper.from_array(scale, tensor.name))
    onnx.save(model, folder / MODEL_FILE)
    write_manifest(folder, dataclasses.replace(read_manifest(folder), files=hash_files(folder)))
    assert not replay(Runtime(folder, num_threads=1), read_golden(folder)).passed


@pytest.mark.parametrize("portable", [False, True], ids=["bodies", "portable"])
def test_large_int8_weights_lie_beside_the_graph(export_tiny: Any, rounded: Path, portable: bool) -> None:
    folder = export_tiny(precision="int8", portable=portable, max_inline_bytes=2000)
    assert (folder / MODEL_DATA_FILE).exists()
    report = replay(Runtime(folder, num_threads=1), read_golden(folder))
    assert report.passed
    assert report.quantisation == read_manifest(rounded).quantisation
    model = onnx.load(folder / MODEL_FILE)
    assert {entry.domain for entry in model.opset_import if portable} <= {""}
    assert types_of(folder) == types_of(rounded)


class Unlike(nn.Module):
    """Nothing like our `Transformer`: one table under two names, weights that are columns, a batch of one, weights read
    twice, and some that are computed from others."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(WORDS, WIDTH)
        self.places = nn.Embedding(MAX_LENGTH, WIDTH)
        self.columns = nn.Parameter(torch.randn(WIDTH, 3 * 4 * SIZE) / 2)
        self.core = Attention(EXPRESSIVE, head_size=SIZE, causal=True)
        self.mix = nn.Linear(4 * SIZE, WIDTH)
        self.same = nn.Linear(WIDTH, WIDTH, bias=False)
        self.normed = nn.utils.parametrizations.weight_norm(nn.Linear(WIDTH, WIDTH))
        self.seam = nn.Identity()
        self.out = nn.Linear(WIDTH, WORDS, bias=False)
        self.out.weight = self.words.weight

    def forward(self, words: Tensor, places: Tensor, slots: Tensor, rows: Tensor) -> Tensor:
        x = self.words(words) + self.places(places)
        query, key, value = (part.unflatten(1, (4, SIZE)) for part in (x @ self.columns).chunk(3, 1))
        x = x + self.mix(self.core(query, key, value, slots).flatten(1))
        x = x + self.normed(functional.gelu(self.same(self.same(x[None])))[0])
        return self.out(self.seam(x)[rows])


@pytest.mark.slow
def test_the_graph_decides_whatever_module_it_is_of(tmp_path: Path) -> None:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        module = Unlike()
    before = copy.deepcopy(module.state_dict())
    place = tmp_path / "unlike" / "1"
    told = {"task": "next_token", "max_length": MAX_LENGTH, "vocabulary_size": WORDS, "blocks": ["seam"]}
    export_module(module, EXAMPLE, destination=place, precision="int8", **told)
    assert all(torch.equal(one, before[name]) for name, one in module.state_dict().items())
    kinds = types_of(place)
    integers = {name.removeprefix("module.") for name, kind in kinds.items() if kind == TensorProto.INT8}
    # The exporter takes either name of the table, and none for a weight that it stores transposed.
    named = {name for name in integers if not name.startswith("val_")}
    assert named == {"columns", "mix.weight", "out.weight"}
    assert len(integers - named) == 1
    assert kinds["module.places.weight"] == TensorProto.FLOAT
    assert replay(Runtime(place, num_threads=1), read_golden(place)).passed

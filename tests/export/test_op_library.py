"""One file, two answers: a registered library's kernel wins over the function body in the file, and only while it is
registered.
"""

import copy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from attnserve.bundle import LOGITS, MODEL_FILE, OP_DOMAIN, OP_VERSION, BundleError, capture_name, hash_file
from attnserve.golden import read_golden, replay
from attnserve.models import Attention, Transformer
from attnserve.models.attention.recording import recorded_outputs
from attnserve.models.checkpoint import load_checkpoint
from attnserve.packing import pack
from attnserve.runtime import Runtime
from tests.kernels.library import build_recognisable

pytestmark = pytest.mark.export

ANSWER = 0.125
"""What the library's ExpressiveAttention says, whatever it is given."""
# Of the model `tiny`, whose layers are dot-product, expressive and elliptical: the first does not see the kernel, the
# last goes on with its bodies.
OPS = {"DotProductAttention", "ExpressiveAttention", "EllipticalMetric"}
BEFORE, *AFTER = OUTPUTS = (*(capture_name(layer, "hidden") for layer in range(3)), LOGITS)


@pytest.fixture(scope="module")
def bundle(bundles: Path) -> Path:
    return bundles / "tiny" / "1"


@pytest.fixture(scope="module")
def model(checkpoint: Path) -> Transformer:
    return load_checkpoint(checkpoint).model


@pytest.fixture(scope="module")
def library() -> Path:
    return build_recognisable()


def answer_of(bundle: Path, library: Path | None = None) -> dict[str, NDArray[np.float32]]:
    runtime = Runtime(bundle, num_threads=1, op_library=library)
    packed = pack(sequences())
    rows = np.arange(len(packed.inputs))
    return runtime.run(packed, rows, OUTPUTS, capture=rows)


def sequences() -> list[NDArray[np.int64]]:
    random = np.random.default_rng(5)
    return [random.integers(0, 13, length) for length in (4, 1, 9)]


@torch.no_grad()
def expected_of(
    model: Transformer, change: Callable[[Attention], None] = lambda _: None
) -> dict[str, NDArray[np.float64]]:
    """PyTorch's answer in float64, each attention changed first."""
    model = copy.deepcopy(model).double()
    for module in model.modules():
        if isinstance(module, Attention):
            change(module)
    packed = pack(sequences())
    tokens, positions, slots = (torch.from_numpy(a) for a in (packed.inputs, packed.positions, packed.slots))
    with recorded_outputs(model.layers) as hidden:
        logits = model(tokens, positions, slots, torch.arange(len(tokens)))
    return dict(zip(OUTPUTS, (tensor.numpy() for tensor in (*hidden, logits)), strict=True))


def answer_as_the_library_does(attention: Attention) -> None:
    def attend(query: Tensor, key: Tensor, value: Tensor, slots: Tensor) -> Tensor:
        return query.new_full((*query.shape[:2], value.shape[2]), ANSWER)

    if attention.variant.op == "ExpressiveAttention":
        attention.attend = attend


def assert_close(answer: dict[str, NDArray[np.float32]], expected: dict[str, NDArray[np.float64]]) -> None:
    for name in OUTPUTS:
        np.testing.assert_allclose(answer[name], expected[name], rtol=0, atol=1e-5, err_msg=name)


def test_the_file_holds_the_ops_and_a_body_for_each(bundle: Path) -> None:
    model = onnx.load(bundle / MODEL_FILE)
    assert {node.op_type for node in model.graph.node if node.domain == OP_DOMAIN} == OPS
    assert {function.name for function in model.functions if function.domain == OP_DOMAIN} >= OPS
    assert [entry.version for entry in model.opset_import if entry.domain == OP_DOMAIN] == [OP_VERSION]
    defined = {(function.domain, function.name) for function in model.functions}
    for holder in (model.graph, *model.functions):
        # Nothing is left that only a library could run.
        assert all(not node.domain or (node.domain, node.op_type) in defined for node in holder.node)


def test_a_registered_library_wins_and_the_body_comes_back(bundle: Path, library: Path, model: Transformer) -> None:
    before = hash_file(bundle / MODEL_FILE)
    golden = read_golden(bundle)

    body = answer_of(bundle)
    assert_close(body, expected_of(model))
    assert replay(Runtime(bundle, num_threads=1), golden).passed

    kernel = answer_of(bundle, library)
    assert_close(kernel, expected_of(model, answer_as_the_library_does))
    assert np.array_equal(kernel[BEFORE], body[BEFORE])
    for name in AFTER:
        # By far more than the tolerance, in every row: the two cannot be taken for each other.
        assert (np.abs(kernel[name] - body[name]).max(axis=1) > 1e-2).all(), name
    # What a service would notice of a kernel that computes something else.
    assert not replay(Runtime(bundle, num_threads=1, op_library=library), golden).passed

    again = answer_of(bundle)
    assert all(np.array_equal(again[name], body[name]) for name in OUTPUTS)
    assert hash_file(bundle / MODEL_FILE) == before


def test_a_library_that_is_none_is_refused_by_name(bundle: Path, tmp_path: Path) -> None:
    path = tmp_path / "kernels.so"
    with pytest.raises(BundleError, match=r"kernels\.so"):
        Runtime(bundle, op_library=path)
    path.write_text("not a library")
    with pytest.raises(BundleError, match=r"kernels\.so"):
        Runtime(bundle, op_library=path)

"""A portable bundle is plain ONNX: no domain, function or package of ours is needed to run it."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx.reference import ReferenceEvaluator

from attnserve.bundle import LOGITS, MODEL_FILE, read_manifest
from attnserve.golden import read_golden
from attnserve.packing import pack
from attnserve.runtime import Runtime

pytestmark = pytest.mark.export

STRANGER = """
import json, sys
for name in ("attnserve", "torch", "onnx", "onnxscript"):
    sys.modules[name] = None
import numpy as np
import onnxruntime

folder = sys.argv[1]
manifest = json.load(open(f"{folder}/manifest.json", encoding="utf-8"))
golden = np.load(f"{folder}/golden.npz")
options = onnxruntime.SessionOptions()
options.log_severity_level = 3
session = onnxruntime.InferenceSession(f"{folder}/model.onnx", options, providers=["CPUExecutionProvider"])
off, start = 0.0, 0
for length in golden["lengths"]:
    recorded = golden["logit_rows"]
    chosen = (recorded >= start) & (recorded < start + length)
    feeds = {
        "tokens": golden["tokens"][start : start + length],
        "positions": np.arange(length),
        "slots": np.arange(length)[None],
        "rows": recorded[chosen] - start,
        "capture": np.arange(0),
    }
    (logits,) = session.run(["logits"], feeds)
    off = max(off, float(np.abs(logits - golden["logits"][chosen]).max()))
    start += length
weights = [name for name in manifest["files"] if name.startswith("weights/")]
for name in weights:
    onnxruntime.InferenceSession(f"{folder}/{name}", options, providers=["CPUExecutionProvider"])
print(json.dumps({"off": off, "sequences": len(golden["lengths"]), "weights": len(weights)}))
"""


@pytest.fixture(scope="module")
def portable(export_tiny: Any) -> Path:
    """Not to be written to: copy it."""
    return export_tiny(portable=True)


def graphs_within(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                yield from graphs_within(inner)


def test_no_file_names_a_domain_but_onnxs_own(portable: Path) -> None:
    assert read_manifest(portable).portable
    paths = sorted(portable.rglob("*.onnx"))
    assert len(paths) == 7
    for path in paths:
        model = onnx.load(path)
        assert len(model.functions) == 0, path.name
        assert [entry.domain for entry in model.opset_import] == [""], path.name
        domains = {node.domain for graph in graphs_within(model.graph) for node in graph.node}
        assert domains <= {"", "ai.onnx"}, path.name
        assert b"attnserve" not in path.read_bytes(), path.name
        onnx.checker.check_model(model, full_check=True)


def test_a_stranger_runs_it(portable: Path) -> None:
    # -I: neither the current folder nor PYTHONPATH.
    done = subprocess.run([sys.executable, "-I", "-c", STRANGER, str(portable)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found, certificate = json.loads(done.stdout), read_manifest(portable).certificate
    assert (found["sequences"], found["weights"]) == (9 + 0, 6)
    assert 0 < found["off"] <= certificate.logits.allowed


def test_the_evaluator_of_onnx_runs_it(portable: Path) -> None:
    golden, runtime = read_golden(portable), Runtime(portable, num_threads=1)
    packed = pack(golden.sequences[:4])
    rows = np.arange(len(packed.inputs))
    feeds = runtime.feeds(packed, rows, rows)
    names = [LOGITS, "layers.1.query", "layers.2.metric", "layers.2.value_norm"]
    (head_scale,) = (one for one in onnx.load(portable / MODEL_FILE).graph.initializer if one.name == "head_scale")
    feeds["head_scale"] = onnx.numpy_helper.to_array(head_scale)
    with np.errstate(all="ignore"):
        answer: Any = ReferenceEvaluator(str(portable / MODEL_FILE)).run(names, feeds)
    assert np.abs(answer[0] - golden.logits[rows]).max() <= runtime.manifest.certificate.logits.allowed
    for found, expected in zip(answer, runtime.run(packed, rows, names, capture=rows).values(), strict=True):
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("weighting", ["softmax", "expressive"])
def test_the_evaluator_runs_its_weights_graphs(portable: Path, weighting: str) -> None:
    random, runtime = np.random.default_rng(0), Runtime(portable, num_threads=1)
    (layer, *_) = (layer for layer in runtime.manifest.layers if layer.weighting == weighting)
    query, key = random.normal(size=(2, 6, 2, 8)).astype(np.float32)
    steps = np.arange(6)
    expected = runtime.weighing.weigh_all(layer, query, key, steps=steps, heads=[0, 1])
    feeds = {
        "query": query.transpose(1, 0, 2),
        "key": key.transpose(1, 0, 2),
        "first_key": np.zeros(6, np.int64),
        "last": steps,
        "scale": np.array(layer.scale, np.float32),
        "softcap": np.array(layer.softcap, np.float32),
    }
    path = portable / "weights" / weighting
    with np.errstate(all="ignore"):
        (feeds["normaliser"],) = ReferenceEvaluator(f"{path}.normaliser.onnx").run(None, feeds)
        feeds["epsilon"] = np.array(layer.epsilon, np.float32)
        answer: Any = ReferenceEvaluator(f"{path}.onnx").run(["weights"], feeds)
        in_one: Any = ReferenceEvaluator(f"{path}.rows.onnx").run(["weights"], feeds)
    np.testing.assert_allclose(answer[0], expected, rtol=0, atol=1e-6)
    np.testing.assert_allclose(in_one[0], expected, rtol=0, atol=1e-6)


def test_it_answers_as_the_bundle_with_bodies_does(portable: Path, bundles: Path) -> None:
    runtimes = [Runtime(folder, num_threads=1) for folder in (portable, bundles / "tiny" / "1")]
    packed = pack(read_golden(portable).sequences)
    rows = np.arange(len(packed.inputs))
    names = [entry.name for entry in runtimes[1].manifest.outputs]
    first, second = (runtime.run(packed, rows, names, capture=rows) for runtime in runtimes)
    for name in names:
        # The optimiser meets other nodes, and may join others.
        np.testing.assert_allclose(first[name], second[name], rtol=0, atol=1e-5 * np.abs(second[name]).max())


def test_only_the_inlining_tells_their_manifests_apart(portable: Path, bundles: Path) -> None:
    one, other = read_manifest(portable), read_manifest(bundles / "tiny" / "1")
    assert not other.portable
    for name in ("inputs", "outputs", "layers", "labels", "card", "warnings"):
        assert getattr(one, name) == getattr(other, name), name
    assert one.certificate.logits.allowed == other.certificate.logits.allowed
    assert one.files["golden.npz"] == other.files["golden.npz"]

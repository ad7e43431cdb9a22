"""A profile in which something of attention is not the GPU's must fail."""

import dataclasses

import onnx
import pytest
from onnx import TensorProto, helper

from attnserve.bundle import MODEL_FILE
from benchmarks.gpu.placement import NodeRun, find_gather, judge, profile, read_profile, run
from tests.fake_cuda import FakeCuda

CUDA, CPU = "CUDAExecutionProvider", "CPUExecutionProvider"
FLOATS, SHAPE = ("float", 3), ("int64", 1)


def node(name="_inlfunc_ExpressiveAttention_n5", op="MatMul", provider=CUDA, tensors=(FLOATS, FLOATS)):
    return NodeRun(name=name, op=op, provider=provider, tensors=tensors)


GATHER = node("node_GatherND_113", "GatherND", CUDA, (FLOATS, ("int64", 2), FLOATS))
GOOD = [
    node(),
    node("_inlfunc_GatherSteps_n1", "Shape", CPU, (FLOATS, SHAPE)),
    node("_inlfunc_GatherSteps_n2", "Concat", CPU, (SHAPE, SHAPE, SHAPE)),
    node("Memcpy", "MemcpyFromHost"),
    node("Memcpy_token_1", "MemcpyToHost"),
    node("Memcpy_token_2", "MemcpyFromHost"),
    node("node_linear", "Gemm"),
    GATHER,
]


def test_all_of_it_on_the_gpu(bundle):
    finding = judge(bundle, "cuda", GOOD, GATHER.name)
    assert finding.verdict == "passed"
    assert finding.cells["of attention"] == "3"
    assert finding.cells["on CUDA"] == "1"
    assert finding.cells["shapes, on the CPU"] == "2"
    assert finding.cells["copies to, from the GPU"] == "2, 1"
    assert finding.cells["others on the CPU"] == ""


@pytest.mark.parametrize(
    ("stray", "words"),
    [
        (
            node(provider=CPU),
            "1 nodes of attention ran elsewhere, such as _inlfunc_ExpressiveAttention_n5 (",
        ),
        (node("node__symbolic", "ExpressiveAttention", CPU), "such as node__symbolic (ExpressiveAttention, CPU"),
        (node("_if_then_branch_And", "And", CPU, (("bool", 5), ("bool", 2), ("bool", 5))), "_if_then_branch_And"),
        # Of whole rows of a mask, and not of sizes.
        (node("_inlfunc_AllowedKeys_n13", "Sub", CPU, (("int64", 2), ("int64", 2), ("int64", 2))), "AllowedKeys_n13"),
        # Nothing is known of what it reads.
        (node("_inlfunc_Scores_n1", "Expand", CPU, ()), "_inlfunc_Scores_n1"),
        (node("_inlfunc_Scores_n1", "Softmax", ""), "_inlfunc_Scores_n1"),
        (node(GATHER.name, "GatherND", CPU, GATHER.tensors), "rows are gathered elsewhere: node_GatherND_113"),
    ],
)
def test_something_of_it_elsewhere(bundle, stray, words):
    finding = judge(bundle, "cuda", [*GOOD, stray], GATHER.name)
    assert len(finding.broken) == 1
    assert words in finding.broken[0]
    assert judge(bundle, "cpu", [*GOOD, stray], GATHER.name).verdict == "not judged: this is the CPU's profile"


def test_nothing_of_it_at_all(bundle):
    others = [one for one in GOOD if not one.is_attention]
    assert judge(bundle, "cuda", others, GATHER.name).broken == ("no node of attention ran",)
    without = [one for one in GOOD if one is not GATHER]
    assert "did not run by this name" in judge(bundle, "cuda", without, GATHER.name).broken[0]
    assert judge(bundle, "cuda", without, None).cells["`rows`"] == "none"


def test_others_are_counted(bundle):
    finding = judge(bundle, "cuda", [*GOOD, node("a", "Gemm", CPU), node("b", "Gemm", CPU)], GATHER.name)
    assert (finding.verdict, finding.cells["others on the CPU"]) == ("passed", "2 Gemm")


def test_a_profile_that_onnx_runtime_wrote(bundle):
    gather = find_gather(onnx.load(bundle.folder / MODEL_FILE).graph)
    finding = judge(bundle, "cuda", read_profile(profile(bundle, "cpu")), gather)
    assert int(finding.cells["of attention"]) > 100
    assert finding.cells["`rows`"] == CPU
    attention, rows = finding.broken
    assert "nodes of attention ran elsewhere" in attention
    assert "rows are gathered elsewhere" in rows


def make_graph(*nodes):
    inputs = [helper.make_tensor_value_info(name, TensorProto.INT64, None) for name in ("rows", "hidden")]
    return helper.make_graph(nodes, "g", inputs, [])


def test_the_gather_is_found_by_what_it_reads():
    unsqueeze = helper.make_node("Unsqueeze", ["rows", "axis"], ["indices"], name="before")
    gather = helper.make_node("GatherND", ["hidden", "indices"], ["chosen"], name="it")
    other = helper.make_node("Gather", ["hidden", "capture"], ["captured"], name="other")
    assert find_gather(make_graph(other, unsqueeze, gather)) == "it"
    with pytest.raises(ValueError, match="rows: expected a node that gathers by it"):
        find_gather(make_graph(other, unsqueeze))
    assert find_gather(helper.make_graph([other], "g", [], [])) is None


def test_a_gpu_whose_work_the_cpu_does(plan, bundle, monkeypatch):
    # It answers to the name of CUDA; its profile does not.
    FakeCuda().install(monkeypatch.setattr)
    (finding,) = run(dataclasses.replace(plan, device="cuda"))
    assert "nodes of attention ran elsewhere" in finding.broken[0]

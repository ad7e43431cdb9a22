"""Bodies: each op in use has one, callees come first, and nothing is attached that nobody calls."""

import copy
from pathlib import Path

import onnx
import pytest
from onnx import helper

from attnserve.bundle import MODEL_FILE, OP_DOMAIN, OP_VERSION
from attnserve.export.attach import attach_bodies, strip_metadata
from attnserve.export.bodies import BODIES, PARTS
from attnserve.export.bodies.domain import OPSET

pytestmark = pytest.mark.export


def nodes_within(nodes) -> list[onnx.NodeProto]:
    found = []
    for node in nodes:
        found.append(node)
        for attribute in node.attribute:
            for graph in (attribute.g, *attribute.graphs):
                found += nodes_within(graph.node)
    return found


def test_callees_come_before_their_callers(bundles: Path) -> None:
    # onnx's evaluator reads functions in the order of the file.
    known = set()
    for function in onnx.load(bundles / "tiny" / "1" / MODEL_FILE).functions:
        called = {node.op_type for node in nodes_within(function.node) if node.domain == OP_DOMAIN}
        assert called <= known, function.name
        known.add(function.name)
    assert known == {*BODIES, *(part.name for part in PARTS)}


def test_only_what_is_used_is_attached(small_graph: onnx.ModelProto) -> None:
    graph = copy.deepcopy(small_graph)
    attach_bodies(graph)
    names = [function.name for function in graph.functions if function.domain == OP_DOMAIN]
    assert sorted(names) == sorted(["ExpressiveAttention", *(part.name for part in PARTS)])
    assert len(names) == len(set(names))


def test_bodies_and_model_agree_on_the_opset(bundles: Path) -> None:
    model = onnx.load(bundles / "tiny" / "1" / MODEL_FILE)
    for holder in (model, *model.functions):
        versions = {entry.domain: entry.version for entry in holder.opset_import}
        assert versions.get("", OPSET) == OPSET
        assert versions.get(OP_DOMAIN, OP_VERSION) == OP_VERSION


def test_an_op_without_a_body_is_our_own_fault() -> None:
    node = helper.make_node("NoSuchAttention", [], ["out"], domain=OP_DOMAIN)
    model = helper.make_model(helper.make_graph([node], "graph", [], []))
    with pytest.raises(KeyError, match="NoSuchAttention"):
        attach_bodies(model)


def test_metadata_is_stripped_everywhere() -> None:
    inner = helper.make_node("Identity", ["x"], ["y"], doc_string="/home/me")
    branch = helper.make_graph([inner], "branch", [], [helper.make_tensor_value_info("y", 1, [])])
    outer = helper.make_node("If", ["c"], ["z"], then_branch=branch, else_branch=branch)
    model = helper.make_model(helper.make_graph([outer], "graph", [], []), doc_string="/home/me")
    for holder in (model, model.graph, *nodes_within(model.graph.node)):
        holder.metadata_props.add(key="source", value="/home/me/code.py")
    strip_metadata(model)
    assert b"/home/me" not in model.SerializeToString()

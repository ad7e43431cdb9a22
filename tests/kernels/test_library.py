"""The library as a whole: what it says it can do, what it needs, and that kernels are what runs."""

import ctypes
import re
import subprocess

import numpy as np
import onnx
import onnxruntime
import pytest

from tests.conformance.cases import attention_case
from tests.conformance.implementations import as_type, one_node_model, open_in_onnx_runtime
from tests.kernels.library import SOURCES, TARGET_OPTION, TARGETS, build_library, has_target


def test_an_instruction_set_that_is_none_is_refused_and_those_there_are_named() -> None:
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry(TARGET_OPTION, "mmx")
    usable = ", ".join(target for target in TARGETS if has_target(build_library(), target))
    with pytest.raises(Exception, match=f"{TARGET_OPTION}: expected one of {usable}, got mmx"):
        options.register_custom_ops_library(str(build_library()))


def test_the_portable_kernels_run_everywhere() -> None:
    assert has_target(build_library(), "portable")


def test_several_sessions_share_a_library() -> None:
    case = attention_case("sessions", (5, 3), causal=True)
    feeds = as_type({name: getattr(case, name) for name in ("query", "key", "value", "slots")}, np.float32)
    model = one_node_model("ExpressiveAttention", {**case.attributes, "causal": 1}, onnx.TensorProto.FLOAT)
    runs = [open_in_onnx_runtime(model, build_library(), target) for target in ("", "portable", "")]
    first, portable, second = (run(feeds)[0] for run in runs)
    assert np.array_equal(first, second)
    np.testing.assert_allclose(first, portable, rtol=0, atol=1e-6)
    del runs[0]
    assert np.array_equal(runs[-1](feeds)[0], first)


def test_kernels_are_what_runs() -> None:
    """Only a kernel refuses slots that no packer makes; a body reads row -1 as numpy would."""
    case = attention_case("bad slots", (2,), causal=True)
    feeds = as_type({name: getattr(case, name) for name in ("query", "key", "value")}, np.float32)
    feeds["slots"] = np.array([[0, -1]])
    model = one_node_model("ExpressiveAttention", {**case.attributes, "causal": 1}, onnx.TensorProto.FLOAT)
    open_in_onnx_runtime(model)(feeds)
    with pytest.raises(Exception, match="ExpressiveAttention: slots"):
        open_in_onnx_runtime(model, build_library())(feeds)


def test_the_library_stands_alone_and_shows_one_function() -> None:
    library = build_library()
    needed = subprocess.run(("readelf", "-d", library), capture_output=True, text=True, check=True).stdout
    names = set(re.findall(r"NEEDED.*\[(.*?)\]", needed))
    # The C++ runtime alone: ONNX Runtime hands its functions over, and of Highway there are only headers.
    assert {name.split(".so")[0] for name in names} <= {"libstdc++", "libgcc_s", "libc", "libm", "ld-linux-x86-64"}
    assert ctypes.CDLL(str(library)).RegisterCustomOps


def test_no_instruction_set_is_assumed_of_the_machine_that_builds() -> None:
    text = (SOURCES / "CMakeLists.txt").read_text("utf-8")
    assert "-march" not in text
    assert "-mavx" not in text

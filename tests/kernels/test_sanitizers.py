"""The conformance grid and hostile inputs in a build that stops at reads and writes out of bounds and at undefined
behaviour. It runs in a process of its own, which imports ONNX Runtime and nothing else that a sanitizer slows down.
"""

import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

from attnserve.export.describing import make_graph
from tests.conformance.cases import attention_case
from tests.conformance.implementations import as_type, one_node_model
from tests.conformance.test_bodies import CASES, OpCase
from tests.conformance.test_statistics import make_feeds
from tests.kernels.library import CACHE, TARGET_OPTION, TARGETS, build_library, has_target
from tests.kernels.test_attend import LENGTHS

pytestmark = pytest.mark.slow

RUN = f"""
import pickle, sys
import onnxruntime

library, target, file = sys.argv[1:]
cases = pickle.load(open(file, "rb"))
refused = 0
for model, feeds in cases:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 2
    options.log_severity_level = 4
    options.add_session_config_entry("{TARGET_OPTION}", target)
    options.register_custom_ops_library(library)
    try:
        onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"]).run(None, feeds)
    except Exception:
        refused += 1
print(len(cases), refused)
"""
HOSTILE_SLOTS = ([[-1, 0, 1]], [[0, 1, 10**9]], [[0, 2, 1]], [[0, 1, 2], [1, 2, 3]], [[2**62]], [[-(2**63)]])


@pytest.fixture(scope="module")
def cases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Models and feeds, the last `len(HOSTILE_SLOTS)` of them of slots that no packer makes."""
    odd = {"num_heads": 6, "head_size": 33, "value_size": 41}
    large = [
        OpCase(op=op, name=op, case=attention_case("sanitized", LENGTHS, causal=causal, window=window, **odd))
        for op in ("ExpressiveAttention", "DotProductAttention")
        for causal in (True, False)
        for window in (0, 70)
    ]
    found = []
    for dtype, element_type in ((np.float32, onnx.TensorProto.FLOAT), (np.float16, onnx.TensorProto.FLOAT16)):
        for case in (*CASES, *large):
            model = one_node_model(case.op, case.attributes, element_type).SerializeToString()
            found.append((model, as_type(case.feeds, dtype)))
    for weighting in ("expressive", "softmax"):
        model = make_graph(weighting).SerializeToString()
        found += [(model, make_feeds(num_keys, size=33)) for num_keys in (1, 31, 128, 300)]
    model, feeds = found[0]
    found += [(model, {**feeds, "slots": np.array(slots)}) for slots in HOSTILE_SLOTS]
    path = tmp_path_factory.mktemp("sanitized") / "cases.pickle"
    path.write_bytes(pickle.dumps(found))
    return path


@pytest.mark.parametrize("target", TARGETS)
def test_nothing_is_read_or_written_out_of_bounds(cases: Path, target: str) -> None:
    library = build_library(CACHE / "sanitized", "-DSANITIZE=ON")
    if not has_target(build_library(), target):
        pytest.skip(f"this processor has no {target}")
    runtimes = [
        subprocess.run(("c++", f"-print-file-name={name}"), capture_output=True, text=True, check=True).stdout.strip()
        for name in ("libasan.so", "libubsan.so")
    ]
    # Python and ONNX Runtime keep memory on purpose until the process ends.
    environment = {**os.environ, "LD_PRELOAD": " ".join(runtimes), "ASAN_OPTIONS": "detect_leaks=0"}
    command = (sys.executable, "-c", RUN, library, target, cases)
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=600)
    assert done.returncode == 0, done.stderr[-5000:]
    num_cases = len(pickle.loads(cases.read_bytes()))
    assert done.stdout.split() == [str(num_cases), str(len(HOSTILE_SLOTS))]

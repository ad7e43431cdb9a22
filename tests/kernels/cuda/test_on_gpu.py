"""The conformance grid on a GPU, where there is one; `test_emulated.py` runs everywhere."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from attnserve.sessions import explain_no_cuda
from tests.conformance.cases import attention_case
from tests.conformance.implementations import as_type, one_node_model
from tests.conformance.test_bodies import CASES, OpCase
from tests.kernels.cuda.test_build import build_cuda_library

# Once, and not for every case.
if (reason := explain_no_cuda()) is not None:
    pytest.skip(f"no GPU: {reason}", allow_module_level=True)

pytestmark = pytest.mark.slow

LARGE = [
    OpCase(
        op=op, name=op, case=attention_case("gpu", (1, 64, 65, 300, 700), causal=causal, window=window, head_size=size)
    )
    for op in ("ExpressiveAttention", "DotProductAttention")
    for causal in (True, False)
    for window in (0, 70)
    for size in (33, 64, 128)
]


def open_on_gpu(model: onnx.ModelProto, library: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.register_custom_ops_library(str(library))
    onnxruntime.preload_dlls()
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CUDAExecutionProvider"])


@pytest.mark.parametrize("case", [*CASES, *LARGE], ids=lambda case: case.name)
@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float32, 1e-5), (np.float16, 4e-3)], ids=["float32", "float16"])
def test_the_grid(case: OpCase, dtype: type[np.floating], tolerance: float) -> None:
    feeds = as_type(case.feeds, dtype)
    element_type = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    session = open_on_gpu(one_node_model(case.op, case.attributes, element_type), build_cuda_library())
    (output,) = session.run(None, feeds)
    np.testing.assert_allclose(output, case.oracle(as_type(feeds, np.float64)), rtol=tolerance, atol=tolerance)

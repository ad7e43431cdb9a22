"""What is asked of NVIDIA's driver, of a library with its functions: nvml.c."""

import ctypes
from pathlib import Path

import pytest

from attnserve.nvidia import Driver, DriverError, Gpu, gpu_memory, name_gpu, read_driver
from tests.c_library import compile_library


@pytest.fixture(scope="module")
def build(tmp_path_factory):
    folder = tmp_path_factory.mktemp("nvml")

    def build_library(fail: int = 0) -> str:
        source, library = Path(__file__).with_name("nvml.c"), folder / f"libnvidia-ml-{fail}.so"
        return str(compile_library(source, library, f"-DFAIL={fail}"))

    return build_library


def test_a_driver_and_its_gpus(build):
    gpu = {"memory_bytes": 80 * 1024**3, "free_bytes": 79 * 1024**3, "capability": "9.0"}
    library = build()
    assert read_driver(library) == Driver(
        version="580.95.05",
        cuda="13.2",
        gpus=(
            Gpu(name="NVIDIA Fake 0", **gpu, uuid="GPU-0", busy=0.25),
            Gpu(name="NVIDIA Fake 1", **gpu, uuid="GPU-1", busy=None),
        ),
    )
    assert ctypes.CDLL(library).opened() == 0, "it was not closed again"


def test_the_gpus_alone(build, tmp_path):
    assert (name_gpu(build()), gpu_memory(build())) == ("NVIDIA Fake 0, NVIDIA Fake 1", 80 * 1024**3)
    for library in (build(3), str(tmp_path / "libnvidia-ml.so.1")):
        assert (name_gpu(library), gpu_memory(library)) == ("", 0)


def test_no_driver_is_none(tmp_path):
    assert read_driver(str(tmp_path / "libnvidia-ml.so.1")) is None


@pytest.mark.parametrize(
    ("fail", "said"),
    [
        (1, r"^nvmlInit_v2: Unknown Error \(999\)$"),
        (2, "^expected nvmlSystemGetCudaDriverVersion_v2, which this NVIDIA driver has not: it is too old$"),
        (3, r"^nvmlDeviceGetMemoryInfo: GPU is lost \(15\)$"),
    ],
)
def test_a_driver_that_does_not_answer_says_where(build, fail, said):
    with pytest.raises(DriverError, match=said):
        read_driver(build(fail))

"""What is asked of NVIDIA's driver, of a library with its functions: nvml.c."""

import ctypes
import sys
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


def test_of_a_gpu_that_is_divided_the_parts_are_read(tmp_path):
    library = tmp_path / "libnvidia-ml.so"
    compile_library(Path(__file__).with_name("nvml.c"), library, "-DPARTS=1")
    driver = read_driver(str(library))
    assert [(gpu.memory_bytes >> 30, gpu.uuid, gpu.capability) for gpu in driver.gpus] == [
        (10, "GPU-256", "9.0"),
        (10, "GPU-1024", "9.0"),
        (80, "GPU-1", "9.0"),
    ]
    assert gpu_memory(str(library)) == 10 * 1024**3


@pytest.mark.parametrize("name", ["nvmlDeviceGetMaxMigDeviceCount", "nvmlDeviceGetMigDeviceHandleByIndex"])
def test_a_driver_that_knows_no_parts_has_whole_gpus(tmp_path, name):
    library = tmp_path / "libnvidia-ml.so"
    compile_library(Path(__file__).with_name("nvml.c"), library, f"-D{name}=renamed")
    assert [gpu.uuid for gpu in read_driver(str(library)).gpus] == ["GPU-0", "GPU-1"]


def test_the_gpus_alone(build, tmp_path):
    assert (name_gpu(build()), gpu_memory(build())) == ("NVIDIA Fake 0, NVIDIA Fake 1", 80 * 1024**3)
    for library in (build(3), str(tmp_path / "libnvidia-ml.so.1")):
        assert (name_gpu(library), gpu_memory(library)) == ("", 0)


def test_no_driver_is_none(tmp_path):
    assert read_driver(str(tmp_path / "libnvidia-ml.so.1")) is None


@pytest.mark.skipif(sys.platform != "linux", reason="what is said of libraries is that of Linux")
@pytest.mark.parametrize("content", [b"", b"no library"], ids=["empty", "text"])
def test_what_is_no_library_is_not_no_driver(tmp_path, content):
    library = tmp_path / "libnvidia-ml.so.1"
    library.write_bytes(content)
    with pytest.raises(DriverError, match=f"^its library cannot be loaded: {library}: "):
        read_driver(str(library))
    assert (name_gpu(str(library)), gpu_memory(str(library))) == ("", 0)


@pytest.mark.parametrize("name", ["nvmlInit_v2", "nvmlErrorString", "nvmlDeviceGetUtilizationRates", "nvmlShutdown"])
def test_a_function_that_a_driver_has_not_is_named(tmp_path, name):
    # One that is asked for last, where something else has failed, and where a GPU need not answer.
    source, library = Path(__file__).with_name("nvml.c"), tmp_path / "libnvidia-ml.so"
    flags = (f"-D{name}=renamed", "-DFAIL=1") if name == "nvmlErrorString" else (f"-D{name}=renamed",)
    compile_library(source, library, *flags)
    with pytest.raises(DriverError, match=f"^expected {name}, which this NVIDIA driver has not: it is too old$"):
        read_driver(str(library))


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

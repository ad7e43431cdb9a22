"""`attnserve doctor`: what it finds, what it calls wrong, and what it says to do."""

import dataclasses
import importlib.metadata
import json
import os
import platform
import threading
from pathlib import Path

import onnxruntime
import pytest

import attnserve
from attnserve import doctor
from attnserve.cli import main
from attnserve.doctor import examine, find_packages, find_runtimes, render
from attnserve.nvidia import Driver, DriverError, Gpu
from tests.kernels.library import build_library

GPU = Gpu(
    name="NVIDIA H100", memory_bytes=80 * 1024**3, free_bytes=79 * 1024**3, capability="9.0", uuid="GPU-0", busy=0.0
)
DRIVER = Driver(version="580.95.05", cuda="13.2", gpus=(GPU,))
NO_DRIVER = "this machine has no NVIDIA driver"


@pytest.fixture
def machine(monkeypatch):
    """A machine without a GPU, where nothing is wrong; change what is to be otherwise."""

    def set_up(**found):
        facts = {
            "driver": None,
            "missing": (),
            "cpu": None,
            "cuda": NO_DRIVER,
            "runtimes": ("onnxruntime-gpu",),
        } | found

        def read_driver():
            if isinstance(facts["driver"], Exception):
                raise facts["driver"]
            return facts["driver"]

        monkeypatch.setattr(doctor, "read_driver", read_driver)
        monkeypatch.setattr(doctor, "find_missing_libraries", lambda cuda: facts["missing"])
        monkeypatch.setattr(doctor, "try_device", facts.__getitem__)
        monkeypatch.setattr(doctor, "find_runtimes", lambda: facts["runtimes"])
        monkeypatch.setattr(doctor, "find_kernels", lambda _: facts.get("library"))
        monkeypatch.setattr(onnxruntime, "cuda_version", facts.get("built_for", "13.0"))

    return set_up


def line_of(text, name):
    """The value of a line, put together again where it was wrapped."""
    rest = text[text.index(f"\n{name}  ") + 1 + len(name) :]
    return " ".join(rest[: len(rest) if "\n" not in rest else min(find_ends(rest))].split())


def find_ends(rest):
    return [place for place, letter in enumerate(rest) if letter == "\n" and not rest[place + 1 :].startswith("  ")]


def test_a_machine_without_a_gpu_is_not_wrong(machine):
    machine()
    checkup = examine()
    assert checkup.faults == ()
    assert checkup.attnserve == attnserve.__version__
    assert checkup.unusable == {"cpu": None, "cuda": NO_DRIVER}
    assert 1 <= checkup.machine.num_cores <= checkup.machine.num_machine_cores == os.cpu_count()
    assert 0 < checkup.machine.free_memory_bytes <= checkup.machine.memory_limit_bytes
    text = render(checkup)
    assert text.startswith(f"attnserve       {attnserve.__version__}\npython          3.")
    assert line_of(text, "driver") == line_of(text, "GPUs") == line_of(text, "kernels") == "none"
    assert line_of(text, "device cpu") == "computes"
    assert line_of(text, "device cuda") == f"no: {NO_DRIVER}"
    assert line_of(text, "CUDA libraries") == "all"
    assert text.endswith(
        "\n\nNothing is wrong.\nAttention on a CPU is faster with native kernels: `make kernels` in a checkout."
    )


def test_a_gpu_that_computes(machine):
    machine(driver=DRIVER, cuda=None)
    checkup = examine()
    assert (checkup.faults, checkup.advice) == ((), ())
    text = render(checkup)
    assert line_of(text, "driver") == "NVIDIA 580.95.05, up to CUDA 13.2"
    assert line_of(text, "GPUs") == "NVIDIA H100, 79.0 of 80.0 GiB are free, compute capability 9.0"
    assert line_of(text, "device cuda") == "computes"
    assert text.endswith("\n\nNothing is wrong.")


def test_an_onnxruntime_without_cuda_needs_no_libraries(machine):
    machine(built_for="")
    text = render(examine())
    assert line_of(text, "CUDA libraries") == "not needed"
    assert line_of(text, "onnxruntime") == f"{onnxruntime.__version__}, built for CPUs"


FAULTS = {
    "a GPU without libraries": (
        {"driver": DRIVER, "missing": ("libcublas.so.13", "libcudnn.so.9"), "cuda": "fell back"},
        "device cuda: fell back; without libcublas.so.13, libcudnn.so.9: pip install 'attnserve[gpu]'",
    ),
    "a GPU that does not compute": (
        {"driver": DRIVER, "cuda": "ONNX Runtime: CUDA failure 802"},
        "device cuda: ONNX Runtime: CUDA failure 802",
    ),
    "a driver that does not answer": (
        {"driver": DriverError("nvmlInit_v2: Driver/library version mismatch (18)")},
        "driver: nvmlInit_v2: Driver/library version mismatch (18)",
    ),
    "a CPU that does not compute": ({"cpu": "ONNX Runtime: illegal"}, "device cpu: ONNX Runtime: illegal"),
    "two of them": (
        {"runtimes": ("onnxruntime", "onnxruntime-gpu")},
        "onnxruntime: expected one package, got onnxruntime, onnxruntime-gpu, which overwrite each other: "
        "pip uninstall --yes onnxruntime onnxruntime-gpu && pip install onnxruntime-gpu",
    ),
}


@pytest.mark.parametrize(("found", "said"), FAULTS.values(), ids=FAULTS)
@pytest.mark.parametrize("flags", [[], ["--json"]], ids=["text", "json"])
def test_what_does_not_work_is_1(machine, capsys, found, said, flags):
    machine(**found)
    assert main(["doctor", *flags]) == 1
    shown = capsys.readouterr().out
    assert json.loads(shown)["faults"] == [said] if flags else f"\n\nwrong: {said}\n" in shown


def test_a_driver_that_hangs_is_not_waited_for(machine, monkeypatch):
    goes_on = threading.Event()
    machine(cuda=AssertionError("CUDA would hang as well"))
    monkeypatch.setattr(doctor, "read_driver", goes_on.wait)
    monkeypatch.setattr(doctor, "PATIENCE_SECONDS", 0.01)
    checkup = examine()
    goes_on.set()
    assert checkup.faults == ("driver: it does not answer within 0.01 s; `dmesg` may say why",)
    assert checkup.unusable == {"cpu": None, "cuda": "its driver does not answer"}
    assert line_of(render(checkup), "driver") == "none"


def test_a_driver_without_gpus_is_not_wrong(machine):
    machine(driver=dataclasses.replace(DRIVER, gpus=()), cuda="fell back")
    checkup = examine()
    assert checkup.faults == ()
    assert line_of(render(checkup), "GPUs") == "none"


def test_kernels_that_load(machine):
    library = build_library()
    machine(library=library)
    checkup = examine()
    assert (checkup.faults, checkup.advice) == ((), ())
    assert checkup.kernels == doctor.Kernels(path=str(library), error=None)
    assert line_of(render(checkup), "kernels") == f"{library} loads"


def test_kernels_that_do_not_load(machine, tmp_path):
    library = tmp_path / "kernels.so"
    library.write_text("no library")
    machine(library=library)
    checkup = examine()
    (fault,) = checkup.faults
    assert fault.startswith(f"kernels: {library} cannot be loaded: ")
    assert checkup.advice == ()


def test_without_an_onnxruntime_that_can_be_imported(machine, monkeypatch):
    def refuse():
        raise ImportError("libonnxruntime.so.1: no such file")

    machine()
    monkeypatch.setattr(doctor, "describe_onnxruntime", refuse)
    checkup = examine()
    assert checkup.onnxruntime is None
    (fault,) = checkup.faults
    assert fault.startswith("onnxruntime: cannot be imported: libonnxruntime.so.1: no such file: pip install ")
    text = render(checkup)
    assert line_of(text, "onnxruntime") == "none"
    assert line_of(text, "device cpu") == "no: no ONNX Runtime"


def test_missing_extras_are_no_fault(machine, monkeypatch):
    machine()
    monkeypatch.setattr(doctor, "find_missing", lambda: {"bench": (), "export": ("onnx", "torch"), "jobs": ("dbos",)})
    checkup = examine()
    assert checkup.faults == ()
    assert line_of(render(checkup), "extras") == "bench; without export (onnx, torch), jobs (dbos)"


def test_packages_that_bring_onnxruntime_are_found(monkeypatch):
    class Distribution:
        def __init__(self, name, *files):
            self.name = name
            self.files = [Path(file) for file in files] or None

    installed = [
        Distribution("onnxruntime-gpu", "onnxruntime/__init__.py"),
        Distribution("onnxruntime-extensions", "onnxruntime_extensions/__init__.py"),
        Distribution("onnxruntime", "onnxruntime/__init__.py", "onnxruntime/capi/x.so"),
        Distribution("without-record"),
    ]
    assert len(find_runtimes()) == 1
    monkeypatch.setattr(importlib.metadata, "distributions", lambda: installed)
    assert find_runtimes() == ("onnxruntime", "onnxruntime-gpu")
    # A folder that is on Python's path twice.
    monkeypatch.setattr(importlib.metadata, "distributions", lambda: installed[:1] * 2)
    assert find_runtimes() == ("onnxruntime-gpu",)


def test_versions_of_what_is_installed():
    assert find_packages(("numpy", "no-such-package")) == {"numpy": importlib.metadata.version("numpy")}


def test_a_system_without_a_name_has_a_kernel(monkeypatch):
    def refuse():
        raise OSError("no /etc/os-release")

    monkeypatch.setattr(doctor.platform, "freedesktop_os_release", refuse)
    monkeypatch.setattr(doctor.platform, "libc_ver", lambda: ("", ""))
    assert doctor.name_system() == f"{platform.system()} {platform.release()}, {platform.machine()}"


def test_json_has_it_all(machine, capsys):
    machine(driver=DRIVER, cuda=None)
    assert main(["doctor", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document.keys() == {field.name for field in dataclasses.fields(doctor.Checkup)}
    assert document["driver"]["gpus"] == [dataclasses.asdict(GPU)]


def test_this_machine(capfd):
    assert main(["doctor"]) in (0, 1)
    shown = capfd.readouterr()
    assert shown.err == ""
    assert line_of(shown.out, "device cpu") == "computes"

"""`attnserve doctor`: what this machine has to serve with, what of it does not work, and what to install."""

import argparse
import importlib.metadata
import json
import os
import platform
import textwrap
from dataclasses import dataclass

from attnserve import __version__
from attnserve.extras import find_missing
from attnserve.kernels import AUTO, explain_unusable, find_kernels
from attnserve.machine import count_cores, free_memory, memory_limit, name_processor
from attnserve.nvidia import Driver, DriverError, ask_driver, read_driver
from attnserve.probing import find_missing_libraries, try_device
from attnserve.records import to_json

GIB = 1024**3
# Those that decide what a model answers or how a service speaks; of others their own metadata says enough.
PACKAGES = (
    "dbos",
    "fastapi",
    "numpy",
    "onnx",
    "onnxscript",
    "pydantic",
    "safetensors",
    "tokenizers",
    "torch",
    "uvicorn",
)
# Drivers take some seconds to wake GPUs that nobody uses.
PATIENCE_SECONDS = 20.0
INSTALL_GPU = "pip install 'attnserve[gpu]'"


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What this process may use, and what there is."""

    python: str
    system: str
    processor: str
    num_cores: int
    """As many threads as a model gets, unless settings say otherwise."""
    num_machine_cores: int
    memory_limit_bytes: int
    free_memory_bytes: int


@dataclass(frozen=True, kw_only=True)
class OnnxRuntime:
    """The ONNX Runtime that is imported."""

    version: str
    cuda: str | None
    """Release of CUDA it was built for."""
    providers: tuple[str, ...]
    """What it was built with, usable or not."""


@dataclass(frozen=True, kw_only=True)
class Kernels:
    """The library of native kernels for the CPU."""

    path: str
    error: str | None
    """Why it cannot be loaded."""


@dataclass(frozen=True, kw_only=True)
class Checkup:
    """All that was found. None is what is not there."""

    attnserve: str
    machine: Machine
    onnxruntime: OnnxRuntime | None
    driver: Driver | None
    missing_libraries: tuple[str, ...]
    """Of CUDA's, those that ONNX Runtime would need."""
    unusable: dict[str, str | None]
    """Why models cannot run there, by device."""
    kernels: Kernels | None
    missing_modules: dict[str, tuple[str, ...]]
    """By extra."""
    packages: dict[str, str]
    """Versions, by name."""
    faults: tuple[str, ...]
    """What is here and does not work, and what to do about it."""
    advice: tuple[str, ...]
    """What is not here and would serve faster."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of `attnserve doctor`."""
    parser.add_argument("--json", action="store_true", help="print the same as JSON")


def run(parsed: argparse.Namespace) -> int:
    """Print what is found; 1 if something that is here does not work."""
    checkup = examine()
    print(json.dumps(to_json(checkup)) if parsed.json else render(checkup))
    return 1 if checkup.faults else 0


def examine() -> Checkup:
    """Look at everything, and try the devices out."""
    faults: list[str] = []
    hangs = False
    driver = None
    try:
        driver = ask_driver(read_driver).result(PATIENCE_SECONDS)
    except DriverError as error:
        faults.append(f"driver: {error}")
    except TimeoutError:
        hangs = True
        faults.append(f"driver: it does not answer within {PATIENCE_SECONDS:g} s; `dmesg` may say why")
    runtimes = find_runtimes()
    if len(runtimes) > 1:
        wanted = "onnxruntime-gpu" if "onnxruntime-gpu" in runtimes else "onnxruntime"
        faults.append(
            f"onnxruntime: expected one package, got {', '.join(runtimes)}, which overwrite each other: "
            f"pip uninstall --yes {' '.join(runtimes)} && pip install {wanted}"
        )
    try:
        found = describe_onnxruntime()
    except Exception as error:  # A damaged installation raises anything: ImportError, OSError, AttributeError.
        found = None
        faults.append(f"onnxruntime: cannot be imported: {error}: pip install --force-reinstall attnserve")
    missing = () if found is None or found.cuda is None else find_missing_libraries(found.cuda)
    unusable: dict[str, str | None] = dict.fromkeys(("cpu", "cuda"), "no ONNX Runtime")
    if found is not None:
        # Of a driver that never answers, CUDA would neither.
        unusable = {"cpu": try_device("cpu"), "cuda": "its driver does not answer" if hangs else try_device("cuda")}
    if found is not None and unusable["cpu"] is not None:
        faults.append(f"device cpu: {unusable['cpu']}")
    # Without a GPU nothing is wrong with a machine that cannot use one.
    if found is not None and driver is not None and driver.gpus and unusable["cuda"] is not None:
        lacks = f"; without {', '.join(missing)}: {INSTALL_GPU}" if missing else ""
        faults.append(f"device cuda: {unusable['cuda']}{lacks}")
    kernels = None if found is None else examine_kernels()
    if kernels is not None and kernels.error is not None:
        faults.append(f"kernels: {kernels.path} cannot be loaded: {kernels.error}: build it again, or --kernels off")
    advice = []
    if found is not None and kernels is None and unusable["cuda"] is not None:
        advice.append("Attention on a CPU is faster with native kernels: `make kernels` in a checkout.")
    return Checkup(
        attnserve=__version__,
        machine=describe_machine(),
        onnxruntime=found,
        driver=driver,
        missing_libraries=missing,
        unusable=unusable,
        kernels=kernels,
        missing_modules=find_missing(),
        packages=find_packages((*runtimes, *PACKAGES)),
        faults=tuple(faults),
        advice=tuple(advice),
    )


def describe_machine() -> Machine:
    """The machine, within the limits of its container."""
    return Machine(
        python=f"{platform.python_version()}, {platform.python_implementation()}",
        system=name_system(),
        processor=name_processor(),
        num_cores=count_cores(),
        num_machine_cores=os.cpu_count() or 1,
        memory_limit_bytes=memory_limit(),
        free_memory_bytes=free_memory(),
    )


def name_system() -> str:
    """Distribution, architecture and C library."""
    try:
        name = platform.freedesktop_os_release()["PRETTY_NAME"]
    except OSError:  # macOS, and images with nothing in them.
        name = f"{platform.system()} {platform.release()}"
    return ", ".join(filter(None, (name, platform.machine(), " ".join(platform.libc_ver()).strip())))


def describe_onnxruntime() -> OnnxRuntime:
    """Whatever `import onnxruntime` brings."""
    import onnxruntime

    return OnnxRuntime(
        version=onnxruntime.__version__,
        cuda=onnxruntime.cuda_version or None,
        providers=tuple(name.removesuffix("ExecutionProvider") for name in onnxruntime.get_available_providers()),
    )


def examine_kernels() -> Kernels | None:
    """The library that `attnserve serve` would take by itself."""
    library = find_kernels(AUTO)
    return None if library is None else Kernels(path=str(library), error=explain_unusable(library))


def find_runtimes() -> tuple[str, ...]:
    """Installed packages that bring a module `onnxruntime`: more than one, and its files are of several.

    Each once, though a folder may be on Python's path twice.
    """
    return tuple(
        sorted(
            {
                distribution.name
                for distribution in importlib.metadata.distributions()
                if any(str(file) == "onnxruntime/__init__.py" for file in distribution.files or ())
            }
        )
    )


def find_packages(names: tuple[str, ...]) -> dict[str, str]:
    """Versions of those that are installed."""
    versions = {}
    for name in names:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def render(checkup: Checkup) -> str:
    """The same lines on every machine, then what is wrong or missing."""
    machine, found, driver, kernels = checkup.machine, checkup.onnxruntime, checkup.driver, checkup.kernels
    gpus = () if driver is None else driver.gpus
    whole = [extra for extra, modules in checkup.missing_modules.items() if not modules]
    partly = [f"{extra} ({', '.join(modules)})" for extra, modules in checkup.missing_modules.items() if modules]
    lines = {
        "attnserve": checkup.attnserve,
        "python": machine.python,
        "system": machine.system,
        "processor": machine.processor,
        "cores": f"{machine.num_cores} of {machine.num_machine_cores}",
        "memory": f"{machine.free_memory_bytes / GIB:.1f} of {machine.memory_limit_bytes / GIB:.1f} GiB are free",
        "onnxruntime": "none" if found is None else f"{found.version}, built for {_spell_cuda(found.cuda)}",
        "providers": "none" if found is None else ", ".join(found.providers),
        "driver": "none" if driver is None else f"NVIDIA {driver.version}, up to CUDA {driver.cuda}",
        "GPUs": "; ".join(
            f"{gpu.name}, {gpu.free_bytes / GIB:.1f} of {gpu.memory_bytes / GIB:.1f} GiB are free, "
            f"compute capability {gpu.capability}"
            for gpu in gpus
        ),
        "CUDA libraries": f"without {', '.join(checkup.missing_libraries)}" if checkup.missing_libraries else "all",
        **{f"device {name}": f"no: {why}" if why else "computes" for name, why in checkup.unusable.items()},
        "kernels": "none" if kernels is None else f"{kernels.path} {'does not load' if kernels.error else 'loads'}",
        "extras": f"{', '.join(whole) or 'none'}; without {', '.join(partly)}" if partly else ", ".join(whole),
        "packages": ", ".join(f"{name}=={version}" for name, version in checkup.packages.items()),
    }
    if found is None or found.cuda is None:
        lines["CUDA libraries"] = "not needed"
    indent = max(map(len, lines)) + 2
    text = [_wrap(f"{name:<{indent}}{value or 'none'}", indent) for name, value in lines.items()]
    found_wrong = [f"wrong: {fault}" for fault in checkup.faults] or ["Nothing is wrong."]
    return "\n".join([*text, "", *found_wrong, *checkup.advice])


def _wrap(line: str, indent: int) -> str:
    # Paths and names stay whole: they are copied.
    return textwrap.fill(
        line, 100, subsequent_indent=" " * indent, break_long_words=False, break_on_hyphens=False, tabsize=1
    )


def _spell_cuda(cuda: str | None) -> str:
    return "CPUs" if cuda is None else f"CUDA {cuda}"

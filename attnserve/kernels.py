"""Where the native library of kernels is: beside this package, or where `make kernels` puts it in a checkout.

Never in a bundle or a repository: those are data, and come from whoever may publish a model.
"""

from pathlib import Path

LIBRARY = "libattnserve_kernels.so"
AUTO, OFF = "auto", "off"

PACKAGE = Path(__file__).resolve().parent
PLACES = (PACKAGE / LIBRARY, PACKAGE.parent / "kernels" / "build" / LIBRARY)
"""In the order they are looked at. The first is in wheels built for a platform, the second in a checkout."""


def find_kernels(wanted: str, places: tuple[Path, ...] = PLACES) -> Path | None:
    """The library to register with models' sessions; None if their function bodies are to run.

    Args:
        wanted: "auto" takes the first of `places` that exists, "off" none; else the path of a library.
        places: where to look.

    Raises:
        ValueError: there is no such file.
    """
    if wanted == OFF:
        return None
    if wanted == AUTO:
        return next((place for place in places if place.is_file()), None)
    path = Path(wanted).expanduser()
    if not path.is_file():
        raise ValueError(f"kernels: expected {AUTO}, {OFF} or the path of a library, got {wanted!r}")
    return path.resolve()


def require_kernels(wanted: str, places: tuple[Path, ...] = PLACES) -> Path | None:
    """As `find_kernels`, for who asks for kernels and not for whatever there is.

    Raises:
        ValueError: there is no such file, "auto" finds none, or ONNX Runtime cannot load it.
    """
    library = find_kernels(wanted, places)
    if wanted == AUTO and library is None:
        raise ValueError("kernels: expected a library, found none; `make kernels` builds it in a checkout")
    if library is not None and (reason := explain_unusable(library)) is not None:
        raise ValueError(f"kernels: expected a library that loads, got {library}: {reason}")
    return library


def explain_unusable(library: Path) -> str | None:
    """Why ONNX Runtime cannot load a library of kernels; None if it can."""
    import onnxruntime

    try:
        onnxruntime.SessionOptions().register_custom_ops_library(str(library))
    except Exception as error:  # ONNX Runtime raises a dozen types of its own, none of them public.
        return str(error)
    return None

"""Extras: what `pip install 'attnserve[...]'` brings besides the base, and which of it is here."""

import importlib.util

EXTRA_OF = {
    "aiohttp": "bench",
    "opentelemetry": "tracing",
    "torch": "export",
    "onnx": "export",
    "onnxscript": "export",
    "jaxtyping": "export",
    "tqdm": "export",
    "accelerate": "huggingface",
    "transformers": "huggingface",
    "matplotlib": "recipes",
    "sklearn": "recipes",
    "dbos": "jobs",
    "sqlalchemy": "jobs",
}
"""The extra that brings each module. `gpu` has none: it brings libraries, and `attnserve doctor` looks for those."""


def find_missing() -> dict[str, tuple[str, ...]]:
    """Modules that are not here, by extra; all extras, sorted. Nothing is imported."""
    missing: dict[str, list[str]] = {extra: [] for extra in sorted(set(EXTRA_OF.values()))}
    for module, extra in EXTRA_OF.items():
        if not _has_module(module):
            missing[extra].append(module)
    return {extra: tuple(modules) for extra, modules in missing.items()}


def _has_module(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except ValueError:  # Somebody has forbidden it to this process: `sys.modules[name] = None`.
        return False

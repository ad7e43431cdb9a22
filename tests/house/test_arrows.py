"""Who may import whom: the arrows keep torch out of the service, and bundles readable by the standard library alone."""

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = {
    "attnserve": "attnserve",
    "models": "attnserve.models",
    "export": "attnserve.export",
    "service": "attnserve.service",
    "worker": "attnserve.worker",
}
FRONT_DOOR = {"attnserve.__main__", "attnserve.cli"}


@dataclass(frozen=True, kw_only=True)
class Arrows:
    """Dotted prefixes a module may import besides the standard library."""

    at_import: set[str]
    when_called: set[str]
    """Inside functions only: whoever imports the module does not pay for these, and need not have them."""


@dataclass(frozen=True, kw_only=True)
class Import:
    name: str
    line: int
    inside_function: bool


def module_name(path: Path) -> str:
    folder, *rest = path.relative_to(ROOT).with_suffix("").parts
    return ".".join([FOLDERS[folder], *rest]).removesuffix(".__init__")


SOURCES = {module_name(path): path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.py"))}
SPINE = {name for name in SOURCES if name.count(".") == 1 and SOURCES[name].parent.name == "attnserve"} - FRONT_DOOR
SPINE.add("attnserve.__version__")

# The longest prefix of a module's name decides. Lists of what is allowed, not of what is forbidden: a new dependency
# is a decision about a room, taken here and in pyproject.toml.
ARROWS = {
    "attnserve": Arrows(at_import=SPINE | {"numpy"}, when_called={"onnxruntime"}),
    "attnserve.bundle": Arrows(
        at_import={"attnserve.certificate", "attnserve.interface", "attnserve.records"}, when_called=set()
    ),
    "attnserve.certificate": Arrows(at_import={"attnserve.interface"}, when_called=set()),
    "attnserve.checkpoint_files": Arrows(at_import={"attnserve.bundle"}, when_called=set()),
    "attnserve.checkpoints": Arrows(
        at_import={f"attnserve.{name}" for name in ("bundle", "checkpoint_files", "publish")},
        when_called=set(),
    ),
    "attnserve.sweep": Arrows(at_import={"attnserve.bundle", "attnserve.checkpoints"}, when_called=set()),
    "attnserve.upload": Arrows(at_import={"attnserve.checkpoints", "attnserve.publish"}, when_called=set()),
    "attnserve.flags": Arrows(at_import={"pydantic", "pydantic_settings"}, when_called=set()),
    "attnserve.exporting": Arrows(at_import={"attnserve.certificate"}, when_called={"attnserve.export"}),
    "attnserve.address": Arrows(at_import=set(), when_called=set()),
    "attnserve.connections": Arrows(at_import=set(), when_called=set()),
    "attnserve.remote": Arrows(
        at_import={f"attnserve.{name}" for name in ("__version__", "address", "connections")}, when_called=set()
    ),
    "attnserve.patience": Arrows(at_import={"attnserve.remote"}, when_called=set()),
    # Bars are there where tqdm is.
    "attnserve.progress": Arrows(at_import=set(), when_called={"tqdm"}),
    "attnserve.shards": Arrows(at_import={"attnserve.checkpoint_files", "attnserve.records"}, when_called=set()),
    "attnserve.push": Arrows(
        at_import={
            f"attnserve.{name}" for name in ("bundle", "checkpoint_files", "exports", "progress", "remote", "shards")
        },
        when_called=set(),
    ),
    "attnserve.exports": Arrows(
        at_import={f"attnserve.{name}" for name in ("certificate", "following", "jobs", "progress", "remote")},
        when_called=set(),
    ),
    "attnserve.following": Arrows(
        at_import={f"attnserve.{name}" for name in ("certificate", "patience", "remote")}, when_called=set()
    ),
    # Imported in notebooks: neither the service nor ONNX Runtime, until a picture is drawn.
    "attnserve.client": Arrows(
        at_import=SPINE | {"attnserve.client", "numpy"},
        when_called={"attnserve.service.formats.picture", "zstandard"},
    ),
    "attnserve.interface": Arrows(at_import={"attnserve.records"}, when_called=set()),
    "attnserve.logs": Arrows(at_import={"orjson"}, when_called=set()),
    "attnserve.unpickling": Arrows(at_import=set(), when_called={"dbos"}),
    "attnserve.text": Arrows(at_import=SPINE | {"numpy"}, when_called={"tokenizers"}),
    "attnserve.records": Arrows(at_import=set(), when_called=set()),
    "attnserve.__main__": Arrows(at_import={"attnserve.cli"}, when_called=set()),
    "attnserve.cli": Arrows(
        at_import=SPINE,
        when_called={"attnserve.models", "attnserve.export", "attnserve.service", "attnserve.worker"}
        | {"numpy", "onnxruntime"},
    ),
    "attnserve.models": Arrows(
        at_import=SPINE | {"attnserve.models", "jaxtyping", "numpy", "safetensors", "tokenizers", "torch", "tqdm"},
        when_called={"sklearn"},
    ),
    # Imported when figures are drawn: the extra `recipes`.
    "attnserve.models.studies.plot": Arrows(at_import={"attnserve.models", "matplotlib"}, when_called={"matplotlib"}),
    "attnserve.export": Arrows(
        at_import=SPINE
        | {"attnserve.export", "attnserve.models"}
        | {"jaxtyping", "numpy", "onnx", "onnxruntime", "onnxscript", "torch", "tqdm"},
        when_called=set(),
    ),
    # The extra `huggingface`: imported when such a model is read.
    "attnserve.models.huggingface": Arrows(
        at_import=SPINE | {"attnserve.models", "jaxtyping", "safetensors", "torch", "transformers"}, when_called=set()
    ),
    **{
        f"attnserve.export.{name}": Arrows(
            at_import=SPINE | {"attnserve.export", "attnserve.models", "numpy", "torch", "transformers"},
            when_called=set(),
        )
        for name in ("huggingface", "stock")
    },
    "attnserve.service": Arrows(
        at_import=SPINE
        | {"attnserve.service", "anyio", "fastapi", "numpy", "onnxruntime", "orjson", "prometheus_client"}
        | {"pydantic", "pydantic_core"}
        | {"pydantic_settings", "safetensors", "starlette", "tokenizers", "uvicorn", "yaml", "zstandard"},
        when_called=set(),
    ),
    # Never torch, onnx, models or export: what a checkpoint does to a process, it does to another one.
    "attnserve.worker": Arrows(
        at_import=SPINE | {"attnserve.worker", "dbos", "pydantic", "pydantic_settings", "sqlalchemy"}, when_called=set()
    ),
    # Imported when the first picture is drawn, and for the types before.
    "attnserve.service.formats.picture": Arrows(
        at_import=SPINE | {"attnserve.service", "numpy", "PIL"}, when_called={"PIL"}
    ),
    # The extra `tracing`: whoever gives no collector runs without it.
    "attnserve.service.tracing": Arrows(
        at_import=SPINE | {"attnserve.service", "opentelemetry", "starlette"}, when_called=set()
    ),
    # The extra `jobs`: imported when somebody asks for exports.
    "attnserve.service.exports.queue": Arrows(
        at_import=SPINE | {"attnserve.service", "dbos", "sqlalchemy"}, when_called=set()
    ),
    "attnserve.service.exports.rows": Arrows(at_import=SPINE | {"attnserve.service", "dbos"}, when_called=set()),
    # The extra `bench`: `attnserve bench BUNDLE` runs without it.
    "attnserve.service.bench": Arrows(
        at_import=SPINE | {"attnserve.service", "numpy", "orjson"}, when_called={"attnserve.service", "tqdm"}
    ),
    "attnserve.service.bench.client": Arrows(
        at_import=SPINE | {"attnserve.service", "aiohttp", "orjson", "yarl"}, when_called=set()
    ),
}


def arrows_of(module: str) -> Arrows:
    prefixes = [prefix for prefix in ARROWS if module == prefix or module.startswith(prefix + ".")]
    return ARROWS[max(prefixes, key=len)]


def imports(node: ast.AST, inside_function: bool = False) -> Iterator[Import]:
    if isinstance(node, ast.Import):
        for alias in node.names:
            yield Import(name=alias.name, line=node.lineno, inside_function=inside_function)
    elif isinstance(node, ast.ImportFrom):
        module = "." * node.level + (node.module or "")
        for alias in node.names:
            yield Import(name=f"{module}.{alias.name}", line=node.lineno, inside_function=inside_function)
    inside_function |= isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    for child in ast.iter_child_nodes(node):
        yield from imports(child, inside_function)


def faults(module: str, source: str) -> list[str]:
    arrows = arrows_of(module)
    found = []
    for item in imports(ast.parse(source)):
        allowed = arrows.at_import | (arrows.when_called if item.inside_function else set())
        # Bare `import attnserve` is the version. Relative imports begin with a dot and match nothing: one way to name
        # a module.
        if item.name == "attnserve" or item.name.split(".")[0] in sys.stdlib_module_names:
            continue
        if not any(item.name == prefix or item.name.startswith(prefix + ".") for prefix in allowed):
            where = "in a function" if item.inside_function else "at import"
            found.append(f"{module}:{item.line} imports {item.name} {where}; allowed: {', '.join(sorted(allowed))}")
    return found


@pytest.mark.parametrize("module", SOURCES)
def test_imports_follow_the_arrows(module):
    assert not faults(module, SOURCES[module].read_text("utf-8"))


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("attnserve.service.engine", "import torch"),
        ("attnserve.service.engine", "def run():\n    import onnx.helper"),
        ("attnserve.service.engine", "from attnserve import export"),
        ("attnserve.service.engine", "from attnserve.cli import main"),
        ("attnserve.service.engine", "from . import routes"),
        ("attnserve.export.trace", "from attnserve.service.engine import Engine"),
        ("attnserve.models.config", "if True:\n    from onnxscript import opset20"),
        ("attnserve.golden", "import onnxruntime"),
        ("attnserve.bundle", "import numpy"),
        ("attnserve.cli", "from attnserve.export import export_bundle"),
        ("attnserve.client.client", "import onnxruntime"),
        ("attnserve.client.pictures", "from attnserve.service.formats.picture import Panel"),
        ("attnserve.worker.build", "from attnserve.export.child import main"),
        ("attnserve.worker.build", "def build():\n    import torch"),
    ],
)
def test_a_wrong_arrow_is_found(module, source):
    assert faults(module, source)


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("attnserve.golden", "import json\nimport numpy as np\ndef replay():\n    import onnxruntime as ort"),
        ("attnserve.cli", "async def serve():\n    from attnserve.service import create_app"),
        ("attnserve.export.trace", "from attnserve import packing"),
    ],
)
def test_a_right_arrow_is_not(module, source):
    assert not faults(module, source)

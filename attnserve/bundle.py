"""What a bundle is: the folder that export writes and service reads, and the only thing they share.

Standard library only. A bundle holds

    manifest.json                        this module's `Manifest`
    model.onnx                           the graph; attention nodes of domain `attnserve`, each with a function body
    weights/<weighting>.onnx             scores and weights of chosen rows, from captured queries and keys
    weights/<weighting>.normaliser.onnx  the number each row is normalised by
    weights/<weighting>.rows.onnx        weights of rows with all their keys, faster; may be missing
    golden.npz                           recorded truth (`attnserve.golden`)
    tokenizer.json                       only if the model reads text (`attnserve.text`)
    model.onnx.data                      only if the weights are large: they are here, not in model.onnx
"""

import hashlib
import json
import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from attnserve.certificate import Certificate, Quantisation
from attnserve.interface import Interface, check_top_k
from attnserve.records import RecordError, from_json, read_text, to_json

FORMAT_VERSION = 1
OP_DOMAIN = "attnserve"
OP_VERSION = 1

MANIFEST_FILE = "manifest.json"
MODEL_FILE = "model.onnx"
MODEL_DATA_FILE = "model.onnx.data"
GOLDEN_FILE = "golden.npz"
TOKENIZER_FILE = "tokenizer.json"
MAX_MANIFEST_BYTES = MAX_TOKENIZER_BYTES = 64 * 1024 * 1024

# Names of the graph's inputs and outputs.
TOKENS, FEATURES = "tokens", "features"
POSITIONS, SLOTS, ROWS, CAPTURE, HEAD_SCALE = "positions", "slots", "rows", "capture", "head_scale"
LOGITS = "logits"
TOP_IDS, TOP_LOGITS, NORMALISER = "top_ids", "top_logits", "normaliser"
TOP = (TOP_IDS, TOP_LOGITS, NORMALISER)
"""What a graph that chooses the likeliest entries itself answers besides all logits; see docs/bundle.md."""
CAPTURES = ("query", "key", "hidden", "value_norm", "metric")


class BundleError(ValueError):
    """A bundle is missing, damaged, of a newer format or fails its own proof; the message says which and where."""


@dataclass(frozen=True, kw_only=True)
class Tensor:
    """An input or output of the graph; symbolic sizes are letters (see docs/bundle.md)."""

    name: str
    dtype: str
    shape: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Layer:
    """How one layer attends: everything needed to recompute its weights from its queries and keys."""

    variant: str
    op: str
    weighting: str
    causal: bool
    scale: float
    epsilon: float
    window: int
    softcap: float
    scope: str | None
    scaling: str | None
    num_heads: int
    num_key_heads: int
    head_size: int
    value_size: int
    captures: dict[str, str]
    """Output name by kind (one of `CAPTURES`)."""

    def __post_init__(self) -> None:
        """Refuse what no layer could be.

        Raises:
            ValueError: names the field.
        """
        # It becomes a part of a file name.
        if re.fullmatch(r"[a-z][a-z0-9_]{0,63}", self.weighting) is None:
            raise ValueError(f"weighting: expected a name of a-z, 0-9 and _, got {self.weighting[:40]!r}")
        for name in ("num_heads", "num_key_heads", "head_size", "value_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}: expected at least 1, got {getattr(self, name)}")
        if self.num_heads % self.num_key_heads:
            raise ValueError(f"num_key_heads: expected a divisor of {self.num_heads}, got {self.num_key_heads}")
        if missing := {"query", "key", "hidden", "value_norm"} - self.captures.keys():
            raise ValueError(f"captures: {min(missing)}: missing")


@dataclass(frozen=True, kw_only=True)
class Provenance:
    """Where a bundle comes from."""

    checkpoint_sha256: dict[str, str]
    """Hash of each checkpoint file."""
    versions: dict[str, str]
    """Library versions at export."""
    created: str
    """ISO 8601, UTC."""


@dataclass(frozen=True, kw_only=True)
class Manifest(Interface):
    """The description of a bundle."""

    format_version: int
    causal: bool
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    layers: tuple[Layer, ...]
    provenance: Provenance
    certificate: Certificate
    files: dict[str, str]
    """sha256 of every other file, by its path in the bundle."""
    quantisation: Quantisation | None = None
    """Of int8 bundles."""
    portable: bool = False
    """Whether the bodies were inlined: no node of domain `attnserve` is left, so no kernel can take its place."""
    card: dict[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuse what no bundle could be.

        Raises:
            ValueError: names the field.
        """
        super().__post_init__()
        if self.format_version < 1:
            raise ValueError(f"format_version: expected at least 1, got {self.format_version}")
        if not self.layers:
            raise ValueError("layers: expected at least one, got none")
        if (self.quantisation is None) == (self.certificate.precision == "int8"):
            got = "none" if self.quantisation is None else f"some with {self.certificate.precision}"
            raise ValueError(f"quantisation: expected figures with precision int8 and with no other, got {got}")
        outputs = {tensor.name for tensor in self.outputs}
        for index, layer in enumerate(self.layers):
            if missing := set(layer.captures.values()) - outputs:
                raise ValueError(f"layers[{index}].captures: expected names of outputs, got {min(missing)[:40]!r}")
        self._check_top()

    def _check_top(self) -> None:
        found = {tensor.name: (tensor.dtype, tensor.shape[1:]) for tensor in self.outputs if tensor.name in TOP}
        if not found:
            return
        entries = (str(self.top_k),)
        if found != {TOP_IDS: ("int64", entries), TOP_LOGITS: ("float32", entries), NORMALISER: ("float32", ())}:
            expected = f"int64 {TOP_IDS} [R, K], float32 {TOP_LOGITS} [R, K] and float32 {NORMALISER} [R]"
            raise ValueError(f"outputs: expected {expected}, or none of them, got {', '.join(found)}")
        check_top_k(self.top_k, self)

    @property
    def top_k(self) -> int | None:
        """K, the entries per answer that the graph chooses itself; None if it answers with logits alone.

        Read from its outputs: a field of its own would be unknown to releases that serve such a bundle by its logits.
        """
        sizes = [tensor.shape[-1] for tensor in self.outputs if tensor.name == TOP_IDS and tensor.shape]
        return int(sizes[0]) if sizes and sizes[0].isdecimal() else None

    @property
    def num_heads(self) -> int:
        """Query heads of each layer."""
        return self.layers[0].num_heads

    @property
    def weightings(self) -> tuple[str, ...]:
        """The weightings in use, each with its own graphs."""
        return tuple(dict.fromkeys(layer.weighting for layer in self.layers))


def is_model_name(name: str) -> bool:
    """Whether `name` can name a model: a folder and a part of a URL, with no way out of either."""
    return re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}", name) is not None


def is_version(name: str) -> bool:
    """Whether `name` is a version: a positive integer without leading zeros."""
    return re.fullmatch(r"[1-9][0-9]{0,8}", name) is not None


def capture_name(layer: int, kind: str) -> str:
    """Name of the graph output that holds a layer's capture."""
    return f"layers.{layer}.{kind}"


def weights_file(weighting: str) -> str:
    """Path in the bundle of the graph that computes scores and weights."""
    return f"weights/{weighting}.onnx"


def normaliser_file(weighting: str) -> str:
    """Path in the bundle of the graph that computes row normalisers."""
    return f"weights/{weighting}.normaliser.onnx"


def rows_file(weighting: str) -> str:
    """Path in the bundle of the graph that computes scores and weights of rows without their normalisers."""
    return f"weights/{weighting}.rows.onnx"


def hash_file(path: Path) -> str:
    """sha256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write `manifest.json`; the caller fills `files` with `hash_files` first.

    Raises:
        BundleError: it holds what JSON or UTF-8 cannot: NaN or half a surrogate pair, which only a card has room for.
    """
    try:
        text = json.dumps(to_json(manifest), indent=2, ensure_ascii=False, allow_nan=False)
        encoded = f"{text}\n".encode()
    except ValueError as error:
        raise BundleError(f"{MANIFEST_FILE}: card: cannot be written as JSON: {error}") from None
    (folder / MANIFEST_FILE).write_bytes(encoded)


def hash_files(folder: Path) -> dict[str, str]:
    """sha256 of every file of a bundle except the manifest, by path with forward slashes."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / MANIFEST_FILE)
    return {path.relative_to(folder).as_posix(): hash_file(path) for path in files}


def read_manifest(folder: str | os.PathLike[str]) -> Manifest:
    """Read and check the manifest of a bundle; no other file is opened.

    Raises:
        BundleError: no manifest, damaged, or of a newer format.
    """
    path = Path(folder) / MANIFEST_FILE
    try:
        document = json.loads(read_text(path, MAX_MANIFEST_BYTES))
        version = document.get("format_version") if isinstance(document, dict) else None
        if isinstance(version, int) and version > FORMAT_VERSION:
            raise RecordError(
                f"format_version: this release reads up to {FORMAT_VERSION}, got {version}; upgrade attnserve"
            )
        return from_json(Manifest, document)
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{path}: {str(error).removeprefix(f'{path}: ')}") from None


def verify_files(folder: str | os.PathLike[str], manifest: Manifest) -> None:
    """Compare every file with the hash the manifest gives for it.

    Raises:
        BundleError: a file is missing, changed, unlisted, or not a plain file inside the folder.
    """
    root = Path(folder)
    graphs = (file(weighting) for weighting in manifest.weightings for file in (weights_file, normaliser_file))
    for name in (MODEL_FILE, GOLDEN_FILE, *graphs):
        if name not in manifest.files:
            raise BundleError(f"{root / MANIFEST_FILE}: files: {name}: missing")
    for name, expected in manifest.files.items():
        path = root / name
        if _leaves(root, name) or path.is_symlink():
            raise BundleError(f"{path}: expected a plain file inside the bundle, got a link or a path out of it")
        if not path.is_file():
            raise BundleError(f"{path}: listed in the manifest, but missing")
        if (found := hash_file(path)) != expected:
            raise BundleError(f"{path}: expected sha256 {expected}, got {found}; the bundle is damaged")
    # A link to a folder is neither followed nor forgiven.
    entries = (path for path in root.rglob("*") if path.is_symlink() or not path.is_dir())
    unlisted = {path.relative_to(root).as_posix() for path in entries} - {*manifest.files, MANIFEST_FILE}
    if unlisted:
        raise BundleError(f"{root / min(unlisted)}: not listed in the manifest")


def _leaves(root: Path, name: str) -> bool:
    """Whether a listed name leads out of the bundle, by itself or through a link on the way."""
    # Not `Path.resolve`, which raises at a loop of links.
    real = os.path.realpath(root)
    return "\0" in name or os.path.commonpath([real, os.path.realpath(root / name)]) != real

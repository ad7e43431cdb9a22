"""Building a bundle: from a module to a folder that is proven, but that nobody sees yet."""

import copy
import dataclasses
import datetime
import shutil
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from torch import nn

import attnserve
from attnserve import bundle
from attnserve.bundle import Manifest, Provenance
from attnserve.certificate import Certificate, Quantisation
from attnserve.export.arguments import find_submodules
from attnserve.export.describe import describe_layers, describe_tensor, warnings_about
from attnserve.export.golden import Stock, record_golden
from attnserve.export.graph import build_graph, build_weights_graphs, save_graph
from attnserve.export.quantisation import measure_quantisation
from attnserve.export.subject import DTYPES, Subject, find_layers
from attnserve.export.verify import Verified, verify
from attnserve.golden import write_golden
from attnserve.interface import Interface, check_top_k

Report = Callable[[str, str], Any]
"""Told the step that begins (of `attnserve.jobs.STEPS`) and what it does."""


@dataclass(frozen=True, kw_only=True)
class Order:
    """What is to be exported, and how."""

    module: nn.Module
    interface: Interface
    precision: str
    portable: bool
    top_k: int | None = None
    """Likeliest entries that the graph chooses itself; None if it answers with logits alone."""
    card: dict[str, Any]
    tokenizer: Path | None
    sha256: dict[str, str]
    """Of the files that the module was made of, by name."""
    warnings: tuple[str, ...] = ()
    """What a reader of its answers must know, besides what its layers say."""
    example: NDArray[Any] | None = None
    blocks: Sequence[str] | None = None
    projections: Sequence[str] | None = None
    stock: Stock | None = None
    """Answers in the place of the module, whose answers are held to these."""

    def __post_init__(self) -> None:
        """Refuse more entries than an answer has.

        Raises:
            ValueError: names the field.
        """
        if self.top_k is not None:
            check_top_k(self.top_k, self.interface)


@dataclass(frozen=True, kw_only=True)
class Built:
    """A bundle that is whole and proven."""

    manifest: Manifest
    verified: Verified


def build(order: Order, folder: Path, report: Report) -> Built:
    """Write the whole bundle into an empty folder, and verify it."""
    interface = order.interface
    # Copies on the CPU: neither the module's precision nor its device may change under its owner.
    plain = copy.deepcopy(order.module).cpu().float().eval()
    module = copy.deepcopy(plain).to(DTYPES[order.precision])
    layers = find_layers(
        module,
        interface,
        _shortest(interface) if order.example is None else order.example,
        blocks=find_submodules(module, "blocks", order.blocks),
        projections=find_submodules(module, "projections", order.projections),
    )
    subject = Subject(module=module, interface=interface, layers=layers, precision=order.precision)
    report("graph", "attention lowered to nodes of domain attnserve, function bodies, captures")
    described = describe_layers(layers)
    graph = build_graph(subject, described, portable=order.portable, top_k=order.top_k)
    save_graph(graph, folder / bundle.MODEL_FILE)
    (folder / "weights").mkdir()
    for weighting in dict.fromkeys(layer.weighting for layer in described):
        for path, small in build_weights_graphs(weighting, portable=order.portable).items():
            save_graph(small, folder / path)
    if order.tokenizer is not None:
        shutil.copyfile(order.tokenizer, folder / bundle.TOKENIZER_FILE)
    report("golden", f"PyTorch's float64 answers and its own {order.precision} error")
    # In place: float64 takes twice the memory, so it comes last. The truth about rounded weights is their own.
    is_rounded = order.precision == "int8"
    oracle = copy.deepcopy(module).double() if is_rounded else plain.double()
    # Somebody else's implementation has weights of its own, which nobody has rounded.
    stock = None if is_rounded else order.stock
    golden, certificate = record_golden(oracle, subject, example=order.example, stock=stock)
    quantisation = measure_quantisation(plain.double(), golden, interface) if is_rounded else None
    # Verifying reads the weights again, and twice.
    del plain, module, layers, subject, oracle
    write_golden(folder, golden)
    manifest = _describe(order, graph, described, certificate, quantisation, bundle.hash_files(folder))
    bundle.write_manifest(folder, manifest)
    report("verify", "replay in ONNX Runtime without torch, and in onnx's ReferenceEvaluator")
    verified = verify(folder, golden, manifest)
    manifest = _with_measured(manifest, verified)
    bundle.write_manifest(folder, manifest)
    return Built(manifest=manifest, verified=verified)


def _shortest(interface: Interface) -> NDArray[Any]:
    """A sequence of a few zeros, to run a module of our own on."""
    num_rows = min(3, interface.max_length) + interface.leading_row
    if interface.num_features is None:
        return np.zeros(num_rows, np.int64)
    return np.zeros((num_rows, interface.num_features), np.float32)


def _describe(
    order: Order,
    graph: onnx.ModelProto,
    layers: tuple[bundle.Layer, ...],
    certificate: Certificate,
    quantisation: Quantisation | None,
    files: dict[str, str],
) -> Manifest:
    libraries = ("torch", "onnx", "onnxscript", "onnxruntime", "onnxruntime-gpu", "numpy", "tokenizers", "transformers")
    versions = {}
    for name in libraries:
        with suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return Manifest(
        **vars(order.interface),
        format_version=bundle.FORMAT_VERSION,
        causal=all(layer.causal for layer in layers),
        inputs=tuple(describe_tensor(entry) for entry in graph.graph.input),
        outputs=tuple(describe_tensor(entry) for entry in graph.graph.output),
        layers=layers,
        provenance=Provenance(
            checkpoint_sha256=order.sha256,
            versions={"attnserve": attnserve.__version__, **versions},
            created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        ),
        certificate=certificate,
        quantisation=quantisation,
        portable=order.portable,
        files=files,
        card=order.card,
        warnings=(*order.warnings, *warnings_about(layers, order.interface)),
    )


def _with_measured(manifest: Manifest, verified: Verified) -> Manifest:
    certificate = manifest.certificate
    return dataclasses.replace(
        manifest,
        certificate=dataclasses.replace(
            certificate,
            logits=dataclasses.replace(certificate.logits, measured=verified.logits),
            maps=dataclasses.replace(certificate.maps, measured=verified.maps),
        ),
    )

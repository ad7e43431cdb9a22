"""The export job: a checkpoint, or any module, becomes a bundle, proven before it is published."""

import copy
import dataclasses
import datetime
import os
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
from attnserve.bundle import Certificate, Manifest, Provenance
from attnserve.checkpoint_files import FILES
from attnserve.export.arguments import check_example, check_module, check_options, find_submodules
from attnserve.export.describe import describe_layers, describe_tensor, hash_state, warnings_about
from attnserve.export.golden import record_golden
from attnserve.export.graph import build_graph, build_weights_graphs, save_graph
from attnserve.export.subject import DTYPES, Subject, find_layers
from attnserve.export.verify import Verified, verify
from attnserve.golden import write_golden
from attnserve.interface import Interface, check_choice
from attnserve.models.checkpoint import load_checkpoint
from attnserve.packing import add_leading_row
from attnserve.publish import check_destination, publishing
from attnserve.text import read_tokenizer

Report = Callable[[str], Any]


@dataclass(frozen=True, kw_only=True)
class _Order:
    """What is to be exported, and how."""

    module: nn.Module
    interface: Interface
    precision: str
    portable: bool
    card: dict[str, Any]
    tokenizer: Path | None
    sha256: dict[str, str]
    example: NDArray[Any] | None = None
    blocks: Sequence[str] | None = None
    projections: Sequence[str] | None = None


def export_checkpoint(
    checkpoint: str | os.PathLike[str],
    destination: str | os.PathLike[str],
    *,
    precision: str = "float32",
    portable: bool = False,
    report: Report = lambda _: None,
) -> Verified:
    """Export `checkpoint` to the bundle folder `destination` = repository/<model>/<version>.

    The bundle is written beside its place, verified, flushed to disk and renamed onto a name that must not exist, so a
    reader sees either nothing or a proven bundle. On any failure nothing is left behind.

    Args:
        checkpoint: folder with config.json and model.safetensors.
        destination: the bundle to make; its last part is the version, a positive integer.
        precision: "float32", "float16" or "bfloat16" (CUDA only), of weights and activations; attention computes in
            float32 always.
        portable: inline the function bodies, so that the file has no custom domain; kernels cannot replace them then.
        report: told one line per step.

    Raises:
        CheckpointError: the checkpoint cannot be read, or is not finite in `precision`.
        ExportError: `destination` is not repository/<model>/<version>, exists or cannot be written.
        BundleError: the card holds what JSON cannot.
        VerificationError: the bundle does not answer as PyTorch does.
        ValueError: there is no such precision.
    """
    source, place = Path(checkpoint), Path(destination)
    check_choice("precision", precision, bundle.PRECISIONS)
    check_destination(place)
    report(f"load       {source}")
    loaded = load_checkpoint(source)
    files = [source / name for name in FILES]
    order = _Order(
        module=loaded.model,
        interface=loaded.model.config.interface,
        precision=precision,
        portable=portable,
        card=loaded.card,
        tokenizer=loaded.tokenizer,
        sha256={path.name: bundle.hash_file(path) for path in files if path.exists()},
    )
    return _export(order, place, report)


def export_module(
    module: nn.Module,
    example: Sequence[Any] | NDArray[Any],
    *,
    task: str,
    destination: str | os.PathLike[str],
    max_length: int,
    vocabulary_size: int | None = None,
    num_classes: int | None = None,
    pooling: str | None = None,
    leading_row: bool = False,
    labels: Sequence[str] | None = None,
    tokenizer: str | os.PathLike[str] | None = None,
    card: dict[str, Any] | None = None,
    precision: str = "float32",
    portable: bool = False,
    blocks: Sequence[str] | None = None,
    projections: Sequence[str] | None = None,
    report: Report = lambda _: None,
) -> Verified:
    """Export any module whose attention is `attnserve.models.Attention`, with captures and certificate.

    It is called with packed rows, `module(inputs, positions, slots, rows)`, and returns the logits [R, W] of `rows`;
    with mean pooling `module(inputs, positions, slots)`, and [B, C] (`attnserve.models.prediction`). It must compute
    every row by itself, except in attention. It is left as it was.

    Args:
        module: in float32; copied, so training may go on.
        example: one sequence as it would be sent: [n] ids, or [n, F] feature vectors. It becomes part of golden.
        task: "next_token", "classify_token" or "classify_sequence".
        destination: repository/<model>/<version>, which must not exist.
        max_length: longest sequence, in steps as they are sent.
        vocabulary_size: ids run from 0 up to this; required with ids.
        num_classes: of the classify tasks.
        pooling: of classify_sequence: "first", "last" or "mean"; which rows it is asked for.
        leading_row: put a row of zeros before the features of every sequence, which the module fills ([cls]).
        labels: a name per class or, for next_token, per id.
        tokenizer: `tokenizer.json` of a module that reads text.
        card: free-form JSON, shown by the service.
        precision: as `export_checkpoint`.
        portable: as `export_checkpoint`.
        blocks: names of the submodules that return the residual stream, one per layer, where they are not the elements
            of a `ModuleList`.
        projections: names of the `Linear`s that read the heads' outputs, one per layer, where they do not come next.
        report: told one line per step.

    Raises:
        ModuleError: the module cannot be exported as it is; the message names the layer or argument.
        ValueError: an argument makes no sense; names it. The other errors are those of `export_checkpoint`.
    """
    place = Path(destination)
    check_choice("precision", precision, bundle.PRECISIONS)
    check_module(module)
    check_options(
        leading_row=leading_row, portable=portable, labels=labels, blocks=blocks, projections=projections, card=card
    )
    sample = check_example(example)
    interface = Interface(
        task=task,
        max_length=max_length,
        vocabulary_size=vocabulary_size,
        num_features=sample.shape[1] if sample.ndim == 2 else None,
        num_classes=num_classes,
        pooling=pooling,
        leading_row=leading_row,
        labels=None if labels is None else tuple(labels),
    )
    if len(sample) > max_length:
        raise ValueError(f"example: expected at most max_length {max_length} steps, got {len(sample)}")
    if vocabulary_size is not None and not 0 <= sample.min() <= sample.max() < vocabulary_size:
        raise ValueError(f"example: expected ids from 0 to {vocabulary_size - 1}, got others")
    if tokenizer is not None:
        read_tokenizer(Path(tokenizer), interface)
    check_destination(place)
    order = _Order(
        module=module,
        interface=interface,
        precision=precision,
        portable=portable,
        card=card or {},
        tokenizer=None if tokenizer is None else Path(tokenizer),
        sha256={"state_dict": hash_state(module)},
        example=add_leading_row(sample) if leading_row else sample,
        blocks=blocks,
        projections=projections,
    )
    return _export(order, place, report)


def _export(order: _Order, place: Path, report: Report) -> Verified:
    """Write the whole bundle beside `place`, verify and publish it."""
    interface = order.interface
    with publishing(place) as folder:
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
        report("graph      attention lowered to nodes of domain attnserve, function bodies, captures")
        described = describe_layers(layers)
        graph = build_graph(subject, described, portable=order.portable)
        save_graph(graph, folder / bundle.MODEL_FILE)
        (folder / "weights").mkdir()
        for weighting in dict.fromkeys(layer.weighting for layer in described):
            for path, small in build_weights_graphs(weighting, portable=order.portable).items():
                save_graph(small, folder / path)
        if order.tokenizer is not None:
            shutil.copyfile(order.tokenizer, folder / bundle.TOKENIZER_FILE)
        report(f"golden     PyTorch's float64 answers and its own {order.precision} error")
        # In place: float64 takes twice the memory, so it comes last.
        golden, certificate = record_golden(plain.double(), subject, example=order.example)
        # Verifying reads the weights again, and twice.
        del plain, module, layers, subject
        write_golden(folder, golden)
        manifest = _describe(order, graph, described, certificate, bundle.hash_files(folder))
        bundle.write_manifest(folder, manifest)
        report("verify     replay in ONNX Runtime without torch, and in onnx's ReferenceEvaluator")
        verified = verify(folder, golden, manifest)
        bundle.write_manifest(folder, _with_measured(manifest, verified))
        report(f"publish    {place}")
    return verified


def _shortest(interface: Interface) -> NDArray[Any]:
    """A sequence of a few zeros, to run a module of our own on."""
    num_rows = min(3, interface.max_length) + interface.leading_row
    if interface.num_features is None:
        return np.zeros(num_rows, np.int64)
    return np.zeros((num_rows, interface.num_features), np.float32)


def _describe(
    order: _Order,
    graph: onnx.ModelProto,
    layers: tuple[bundle.Layer, ...],
    certificate: Certificate,
    files: dict[str, str],
) -> Manifest:
    libraries = ("torch", "onnx", "onnxscript", "onnxruntime", "onnxruntime-gpu", "numpy", "tokenizers")
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
        portable=order.portable,
        files=files,
        card=order.card,
        warnings=warnings_about(layers, order.interface),
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

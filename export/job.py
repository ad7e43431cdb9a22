"""The export job: a checkpoint becomes a bundle, proven before it is published."""

import dataclasses
import datetime
import os
import shutil
import uuid
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import onnx

import attnserve
from attnserve import bundle
from attnserve.bundle import Certificate, Layer, Manifest, Provenance
from attnserve.export.attach import attach_bodies, strip_metadata
from attnserve.export.captures import add_captures, make_head_scale_optional
from attnserve.export.golden import record_golden
from attnserve.export.trace import trace
from attnserve.export.verify import Verified, verify
from attnserve.export.weights import NORMALISERS, WEIGHTS
from attnserve.golden import write_golden
from attnserve.models.checkpoint import CARD_FILE, CONFIG_FILE, WEIGHTS_FILE, load_checkpoint
from attnserve.models.transformer import Transformer

DTYPES = {onnx.TensorProto.FLOAT: "float32", onnx.TensorProto.INT64: "int64"}


class ExportError(ValueError):
    """The export cannot be done as asked; the message names the argument."""


def export_checkpoint(
    checkpoint: str | os.PathLike[str],
    destination: str | os.PathLike[str],
    *,
    report: Callable[[str], Any] = lambda _: None,
) -> Verified:
    """Export `checkpoint` to the bundle folder `destination` = repository/<model>/<version>.

    The bundle is written beside its place, verified, flushed to disk and renamed onto a name that must not exist, so a
    reader sees either nothing or a proven bundle. On any failure nothing is left behind.

    Args:
        checkpoint: folder with config.json and model.safetensors.
        destination: the bundle to make; its last part is the version, a positive integer.
        report: told one line per step.

    Raises:
        CheckpointError: the checkpoint cannot be read.
        ExportError: `destination` is not repository/<model>/<version>, or exists.
        VerificationError: the bundle does not answer as PyTorch does.
    """
    source, place = Path(checkpoint), Path(destination)
    check_destination(place)
    report(f"load       {source}")
    loaded = load_checkpoint(source)
    created_parents = [parent for parent in (place.parent, place.parent.parent) if not parent.exists()]
    folder = place.parent / f".tmp-{uuid.uuid4().hex}"
    folder.mkdir(parents=True)
    try:
        verified = _build(loaded.model, loaded.card, source, folder, report)
        report(f"publish    {place}")
        publish(folder, place)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        for parent in created_parents:
            if parent.exists() and not any(parent.iterdir()):
                parent.rmdir()
        raise
    return verified


def check_destination(place: Path) -> None:
    """Refuse a destination that is not repository/<model>/<positive integer>, or is taken.

    Raises:
        ExportError: names the argument.
    """
    if not bundle.is_version(place.name) or not bundle.is_model_name(place.parent.name):
        raise ExportError(
            "destination: expected REPOSITORY/model/version with a version like 1 and a model of letters, digits, "
            f"'.', '_' and '-', got {place}"
        )
    if place.exists():
        raise ExportError(f"destination: {place} exists; versions are never overwritten, choose the next number")


def publish(folder: Path, place: Path) -> None:
    """Flush a finished bundle to disk and rename it into place.

    Raises:
        ExportError: `place` exists; of two exports racing for one version, one gets this.
    """
    for path in [*folder.rglob("*"), folder]:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    try:
        # Renaming a folder onto one that is not empty fails; a bundle never is.
        folder.rename(place)
    except OSError as error:
        if place.exists():
            raise ExportError(f"destination: {place} exists; another export was first") from None
        raise error


def _build(
    model: Transformer, card: dict[str, Any], source: Path, folder: Path, report: Callable[[str], Any]
) -> Verified:
    """Write the whole bundle to `folder` and verify it."""
    report("trace      attention lowered to nodes of domain attnserve")
    graph = trace(model)
    report("attach     function bodies, captures, weights graphs")
    layers = describe_layers(model)
    attach_bodies(graph)
    add_captures(graph, layers, output_projections(model))
    make_head_scale_optional(graph)
    strip_metadata(graph)
    onnx.checker.check_model(graph, full_check=True)
    onnx.save(graph, folder / bundle.MODEL_FILE)
    (folder / "weights").mkdir()
    for weighting in dict.fromkeys(layer.weighting for layer in layers):
        onnx.save(WEIGHTS[weighting].to_model_proto(), folder / bundle.weights_file(weighting))
        onnx.save(NORMALISERS[weighting].to_model_proto(), folder / bundle.normaliser_file(weighting))
    report("golden     PyTorch's float64 answers and its own float32 error")
    golden, certificate = record_golden(model)
    write_golden(folder, golden)
    manifest = _describe(model, card, source, graph, layers, certificate, bundle.hash_files(folder))
    bundle.write_manifest(folder, manifest)
    report("verify     replay in ONNX Runtime without torch, and in onnx's ReferenceEvaluator")
    verified = verify(folder, golden)
    bundle.write_manifest(folder, _with_measured(manifest, verified.logits, verified.maps))
    return verified


def output_projections(model: Transformer) -> list[Any]:
    """Per layer [D, H, V]: how each head's values enter the residual stream."""
    weights = (block.attention.output.weight.detach().double() for block in model.layers)
    return [weight.unflatten(1, (model.config.num_heads, -1)).numpy() for weight in weights]


def describe_layers(model: Transformer) -> tuple[Layer, ...]:
    """What the manifest says of each layer."""
    layers = []
    for index, block in enumerate(model.layers):
        attention = block.attention.attention
        config, variant = attention.config, attention.variant
        kinds = [kind for kind in bundle.CAPTURES if kind != "metric" or variant.metric_op is not None]
        layers.append(
            Layer(
                variant=variant.name,
                op=variant.op,
                weighting=variant.weighting,
                causal=attention.causal,
                scale=attention.scale,
                epsilon=config.epsilon,
                window=config.window,
                softcap=config.softcap,
                scope=config.scope,
                scaling=config.scaling,
                num_heads=model.config.num_heads,
                num_key_heads=model.config.num_heads,
                head_size=model.config.head_size,
                value_size=model.config.head_size,
                captures={kind: bundle.capture_name(index, kind) for kind in kinds},
            )
        )
    return tuple(layers)


def warnings_about(model: Transformer) -> tuple[str, ...]:
    """What a reader of this model's answers must know; carried by every answer."""
    config = model.config
    warnings = [
        f"layer {index} estimates its metric from the whole sequence (scope sequence-leaky): answers at a position "
        "depend on later tokens"
        for index, layer in enumerate(config.attention)
        if layer.scope == "sequence-leaky"
    ]
    if not config.causal and config.task == "next_token":
        warnings.append("bidirectional: only the last position predicts a token the model has not seen")
    return tuple(warnings)


def _describe(
    model: Transformer,
    card: dict[str, Any],
    source: Path,
    graph: onnx.ModelProto,
    layers: tuple[Layer, ...],
    certificate: Certificate,
    files: dict[str, str],
) -> Manifest:
    config = model.config
    sources = [source / name for name in (CONFIG_FILE, WEIGHTS_FILE, CARD_FILE)]
    libraries = ("torch", "onnx", "onnxscript", "onnxruntime", "onnxruntime-gpu", "numpy")
    installed = {library.metadata["Name"].lower(): library.version for library in metadata.distributions()}
    versions = {name: installed[name] for name in libraries if name in installed}
    return Manifest(
        format_version=bundle.FORMAT_VERSION,
        task=config.task,
        causal=config.causal,
        vocabulary_size=config.vocabulary_size,
        max_length=config.max_length,
        inputs=tuple(_describe_tensor(entry) for entry in graph.graph.input),
        outputs=tuple(_describe_tensor(entry) for entry in graph.graph.output),
        layers=layers,
        provenance=Provenance(
            checkpoint_sha256={path.name: bundle.hash_file(path) for path in sources if path.exists()},
            versions={"attnserve": attnserve.__version__, **versions},
            created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        ),
        certificate=certificate,
        files=files,
        labels=config.labels,
        card=card,
        warnings=warnings_about(model),
    )


def _describe_tensor(entry: onnx.ValueInfoProto) -> bundle.Tensor:
    tensor = entry.type.tensor_type
    shape = tuple(dim.dim_param or str(dim.dim_value) for dim in tensor.shape.dim)
    return bundle.Tensor(name=entry.name, dtype=DTYPES[tensor.elem_type], shape=shape)


def _with_measured(manifest: Manifest, logits: float, maps: float) -> Manifest:
    certificate = dataclasses.replace(
        manifest.certificate,
        logits=dataclasses.replace(manifest.certificate.logits, measured=logits),
        maps=dataclasses.replace(manifest.certificate.maps, measured=maps),
    )
    return dataclasses.replace(manifest, certificate=certificate)

"""The export job: a checkpoint becomes a bundle, proven before it is published."""

import dataclasses
import datetime
import os
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any

import onnx

import attnserve
from attnserve import bundle
from attnserve.bundle import Certificate, Layer, Manifest, Provenance
from attnserve.export.attach import attach_bodies, strip_metadata
from attnserve.export.canonical import canonicalise
from attnserve.export.captures import add_captures, make_head_scale_optional
from attnserve.export.golden import record_golden
from attnserve.export.publish import check_destination, publishing
from attnserve.export.trace import trace
from attnserve.export.verify import Verified, verify
from attnserve.export.weights import NORMALISERS, WEIGHTS
from attnserve.golden import write_golden
from attnserve.models.checkpoint import CARD_FILE, CONFIG_FILE, WEIGHTS_FILE, load_checkpoint
from attnserve.models.transformer import MultiHeadAttention, Transformer

DTYPES: dict[int, str] = {onnx.TensorProto.FLOAT: "float32", onnx.TensorProto.INT64: "int64"}


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
        ExportError: `destination` is not repository/<model>/<version>, exists or cannot be written.
        BundleError: the card holds what JSON cannot.
        VerificationError: the bundle does not answer as PyTorch does.
    """
    source, place = Path(checkpoint), Path(destination)
    check_destination(place)
    report(f"load       {source}")
    loaded = load_checkpoint(source)
    with publishing(place) as folder:
        verified = _build(loaded.model, loaded.card, source, folder, report)
        report(f"publish    {place}")
    return verified


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
        graphs = {bundle.weights_file: WEIGHTS, bundle.normaliser_file: NORMALISERS}
        for name_file, functions in graphs.items():
            onnx.save(canonicalise(functions[weighting].to_model_proto()), folder / name_file(weighting))
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
    weights = (layer.output.weight.detach().double() for layer in _attention_layers(model))
    return [weight.numpy().reshape(len(weight), model.config.num_heads, -1) for weight in weights]


def describe_layers(model: Transformer) -> tuple[Layer, ...]:
    """What the manifest says of each layer."""
    layers = []
    for index, layer in enumerate(_attention_layers(model)):
        attention = layer.attention
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


def _attention_layers(model: Transformer) -> list[MultiHeadAttention]:
    return [module for module in model.modules() if isinstance(module, MultiHeadAttention)]


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

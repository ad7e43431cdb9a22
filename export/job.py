"""The export job: a checkpoint, or any module, becomes a bundle, proven before it is published."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from numpy.typing import NDArray
from torch import nn

from attnserve import bundle
from attnserve.certificate import PRECISIONS
from attnserve.checkpoint_files import FILES, names_class
from attnserve.export.arguments import check_example, check_module, check_options
from attnserve.export.build import Built, Order, Report, build
from attnserve.export.describe import hash_state
from attnserve.export.tokenizer import check_tokenizer
from attnserve.export.twin import make_twin, warn_of_twin
from attnserve.export.verify import Verified
from attnserve.interface import Interface, check_choice
from attnserve.models.checkpoint import CheckpointError, load_checkpoint
from attnserve.packing import add_leading_row
from attnserve.publish import check_destination, publishing
from attnserve.text import read_tokenizer


def export_checkpoint(
    checkpoint: str | os.PathLike[str],
    destination: str | os.PathLike[str],
    *,
    precision: str = "float32",
    portable: bool = False,
    top_k: int | None = None,
    twin: str | None = None,
    report: Report = lambda *_: None,
) -> Verified:
    """Export `checkpoint` to the bundle folder `destination` = repository/<model>/<version>.

    The bundle is written beside its place, verified, flushed to disk and renamed onto a name that must not exist, so a
    reader sees either nothing or a proven bundle. On any failure nothing is left behind.

    Args:
        checkpoint: folder with config.json and model.safetensors, ours or of a Hugging Face model.
        destination: the bundle to make; its last part is the version, a positive integer.
        precision: "float32", "float16" or "bfloat16" (CUDA only), of weights and activations; attention computes in
            float32 always. "int8" is of weights alone; all computes in float32.
        portable: inline the function bodies, so that the file has no custom domain; kernels cannot replace them then.
        top_k: have the graph choose so many of the likeliest ids or classes itself, so that predictions need no logits.
        twin: a variant that takes the place of the attention of every layer, with the same weights.
        report: told each step as it begins, and what it does.

    Raises:
        CheckpointError: the checkpoint cannot be read, or is not finite in `precision`.
        ExportError: `destination` is not repository/<model>/<version>, exists or cannot be written.
        BundleError: the card holds what JSON cannot.
        VerificationError: the bundle does not answer as PyTorch does.
        ValueError: there is no such precision or twin, or there are fewer ids or classes than `top_k`.
    """
    place = Path(destination)
    check_choice("precision", precision, PRECISIONS)
    check_destination(place)
    order = _read_order(Path(checkpoint), precision=precision, portable=portable, top_k=top_k, twin=twin, report=report)
    return publish(order, place, report)


def build_checkpoint(
    checkpoint: str | os.PathLike[str],
    folder: str | os.PathLike[str],
    *,
    precision: str = "float32",
    portable: bool = False,
    top_k: int | None = None,
    report: Report = lambda *_: None,
) -> Built:
    """As `export_checkpoint`, but leave the proven bundle in `folder`, which is there and empty, for others to publish.

    Raises:
        ValueError: as `export_checkpoint`; what has been written by then is left.
    """
    check_choice("precision", precision, PRECISIONS)
    order = _read_order(Path(checkpoint), precision=precision, portable=portable, top_k=top_k, report=report)
    return build(order, Path(folder), report)


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
    top_k: int | None = None,
    blocks: Sequence[str] | None = None,
    projections: Sequence[str] | None = None,
    report: Report = lambda *_: None,
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
        top_k: as `export_checkpoint`.
        blocks: names of the submodules that return the residual stream, one per layer, where they are not the elements
            of a `ModuleList`.
        projections: names of the `Linear`s that read the heads' outputs, one per layer, where they do not come next.
        report: told each step as it begins, and what it does.

    Raises:
        ModuleError: the module cannot be exported as it is; the message names the layer or argument.
        ValueError: an argument makes no sense; names it. The other errors are those of `export_checkpoint`.
    """
    place = Path(destination)
    check_choice("precision", precision, PRECISIONS)
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
    order = Order(
        module=module,
        interface=interface,
        precision=precision,
        portable=portable,
        top_k=top_k,
        card=card or {},
        tokenizer=None if tokenizer is None else Path(tokenizer),
        sha256={"state_dict": hash_state(module)},
        example=add_leading_row(sample) if leading_row else sample,
        blocks=blocks,
        projections=projections,
    )
    return publish(order, place, report)


def _read_order(
    source: Path, *, precision: str, portable: bool, top_k: int | None, report: Report, twin: str | None = None
) -> Order:
    if names_class(source):
        if twin is not None:
            raise ValueError("twin: expected none with a Hugging Face model; export it with another attention instead")
        return _read_hugging_face(source, precision=precision, portable=portable, top_k=top_k, report=report)
    report("load", str(source))
    tokenizer = source / bundle.TOKENIZER_FILE
    if tokenizer.exists():
        # Before it is read here: what crashes its library would take this process along.
        check_tokenizer(tokenizer)
    loaded = load_checkpoint(source)
    return Order(
        module=loaded.model if twin is None else make_twin(loaded.model, twin),
        interface=loaded.model.config.interface,
        precision=precision,
        portable=portable,
        top_k=top_k,
        card=loaded.card,
        tokenizer=loaded.tokenizer,
        sha256={name: bundle.hash_file(source / name) for name in FILES if (source / name).exists()},
        warnings=() if twin is None else (warn_of_twin(loaded.model, twin),),
    )


def _read_hugging_face(source: Path, **options: Any) -> Order:
    try:
        # The extra `huggingface`, which few exports need, and which takes seconds to import.
        from attnserve.export.huggingface import read_folder
    except ModuleNotFoundError as error:
        if error.name != "transformers":
            raise
        raise CheckpointError(
            f"{source}: a Hugging Face model: to export it, pip install 'attnserve[huggingface]'"
        ) from None
    return read_folder(source, **options)


def publish(order: Order, place: Path, report: Report) -> Verified:
    """Build what is ordered and publish it.

    Raises:
        ValueError: as `export_checkpoint`; then nothing is left behind.
    """
    with publishing(place) as folder:
        built = build(order, folder, report)
        report("publish", str(place))
    return built.verified

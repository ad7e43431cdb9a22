"""The export of a Hugging Face folder: from its config to an order, with the stock model as the source of golden."""

import copy
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PreTrainedModel

from attnserve import bundle
from attnserve.certificate import PRECISIONS
from attnserve.checkpoint_files import FILES, INDEX_FILE
from attnserve.export.build import Order, Report
from attnserve.export.job import publish
from attnserve.export.stock import StockModel
from attnserve.export.tokenizer import check_tokenizer
from attnserve.export.verify import Verified
from attnserve.interface import Interface, check_choice
from attnserve.models.attention import VARIANTS
from attnserve.models.huggingface import HuggingFaceError, PackedModel, Settings, inspect, load
from attnserve.models.huggingface.inspection import Inspection, max_length_of, sample_ids
from attnserve.models.huggingface.settings import read_settings
from attnserve.models.huggingface.shared import shares_layers, unshare
from attnserve.models.prediction import predict_packed
from attnserve.packing import add_leading_row
from attnserve.publish import check_destination
from attnserve.text import TextReader, read_tokenizer

TASKS = {
    "ForCausalLM": "next_token",
    "LMHeadModel": "next_token",
    "ForMaskedLM": "fill_mask",
    "ForTokenClassification": "classify_token",
    "ForSequenceClassification": "classify_sequence",
    "ForImageClassification": "classify_sequence",
    "ForImageClassificationWithTeacher": "classify_sequence",
}
"""Task by the end of a class's name. `fill_mask` is `classify_token`, with the vocabulary for classes."""
POOLINGS = ("first", "last", "mean")
# Between the model as it is and the model packed, in float64, relative to the largest logit.
MAX_DIFFERENCE = 1e-9
# Of the few sequences by which offset and pooling are told; golden's are more.
LENGTHS = (5, 2, 9)


def export_hugging_face(
    folder: str | os.PathLike[str],
    destination: str | os.PathLike[str],
    *,
    attention: str | None = None,
    task: str = "auto",
    untrained: bool = False,
    precision: str = "float32",
    portable: bool = False,
    top_k: int | None = None,
    report: Report = lambda *_: None,
) -> Verified:
    """Export a Hugging Face model to the bundle folder `destination` = repository/<model>/<version>.

    Golden is what transformers answers, one sequence at a time, unpadded.

    Args:
        folder: config.json and safetensors; tokenizer.json if it reads text.
        destination: the bundle to make.
        attention: a variant; as `config.attnserve` says if None, else dot-product.
        task: "auto", by the class that the config names, or the one that it should be.
        untrained: let `attention` be another than the model was trained with.
        precision: as `export_checkpoint`.
        portable: as `export_checkpoint`.
        top_k: as `export_checkpoint`.
        report: told each step as it begins, and what it does.

    Raises:
        HuggingFaceError: the model cannot be read or exported; names the file, the layer or the field.
        ValueError: as `export_checkpoint`.
    """
    place = Path(destination)
    check_choice("precision", precision, PRECISIONS)
    check_destination(place)
    order = read_folder(
        Path(folder),
        attention=attention,
        task=task,
        untrained=untrained,
        precision=precision,
        portable=portable,
        top_k=top_k,
        report=report,
    )
    return publish(order, place, report)


def read_folder(
    folder: Path,
    *,
    precision: str,
    portable: bool,
    report: Report,
    top_k: int | None = None,
    attention: str | None = None,
    task: str = "auto",
    untrained: bool = False,
) -> Order:
    """Read a Hugging Face folder, and prove that the model, packed, answers as it does by itself.

    Args:
        folder: config.json and safetensors; tokenizer.json if it reads text.
        precision: of the bundle.
        portable: inline the function bodies.
        report: told each step as it begins.
        top_k: likeliest entries that the graph chooses itself.
        attention: a variant; as `config.attnserve` says if None, else dot-product.
        task: "auto", by the class that the config names, or one of the interface's.
        untrained: let `attention` be another than the model was trained with.

    Raises:
        HuggingFaceError: it cannot be read or exported; names the file, the layer or the field.
        ValueError: an argument makes no sense; names it.
    """
    report("load", str(folder))
    tokenizer = folder / bundle.TOKENIZER_FILE
    if tokenizer.exists():
        check_tokenizer(tokenizer)
    model = load(folder)
    settings, warnings = _choose(model, attention, untrained=untrained)
    seen = inspect(model, settings)
    if seen.refusals:
        raise HuggingFaceError("; ".join(seen.refusals))
    stock = StockModel(model, settings.variant)
    if shares_layers(model):
        unshare(model)
        seen = inspect(model, settings)
        assert not seen.refusals
    packed, interface = _pack(model, stock, seen, settings, task, tokenizer if tokenizer.exists() else None)
    files = [*FILES, INDEX_FILE, *sorted(path.name for path in folder.glob("model-*.safetensors"))]
    return Order(
        module=packed,
        interface=interface,
        precision=precision,
        portable=portable,
        top_k=top_k,
        card={"description": f"{type(model).__name__} of transformers"},
        tokenizer=tokenizer if tokenizer.exists() else None,
        sha256={name: bundle.hash_file(folder / name) for name in files if (folder / name).exists()},
        warnings=(*warnings, *_warnings(model)),
        stock=stock,
    )


def _choose(model: PreTrainedModel, attention: str | None, *, untrained: bool) -> tuple[Settings, tuple[str, ...]]:
    """How the model is to attend, and what a reader must know of that."""
    trained = read_settings(model.config) or Settings()
    if attention is None or attention == trained.variant:
        return trained, ()
    check_choice("attention", attention, tuple(VARIANTS))
    if not untrained:
        raise HuggingFaceError(
            f"attention: expected {trained.variant}, which the model was trained with (config.attnserve), got "
            f"{attention}; to see what it would do all the same, say untrained"
        )
    if attention == "elliptical":
        raise ValueError("attention: elliptical has a scope and a scaling, which are never guessed; see configure")
    warning = f"untrained: {attention} attention with weights that were trained with {trained.variant}"
    return Settings(variant=attention), (warning,)


def _warnings(model: PreTrainedModel) -> tuple[str, ...]:
    """What its answers do not say."""
    problem = getattr(model.config, "problem_type", None)
    if problem in ("regression", "multi_label_classification"):
        return (f"{problem}: logits are the model's numbers; probabilities, a softmax over them, mean nothing",)
    return ()


def _pack(
    model: PreTrainedModel,
    stock: StockModel,
    seen: Inspection,
    settings: Settings,
    task: str,
    tokenizer: Path | None,
) -> tuple[PackedModel, Interface]:
    """The model for packed rows, and what it reads and answers: offset and pooling are those that give its answers."""
    kind = type(model).__name__
    found = next((one for end, one in TASKS.items() if kind.endswith(end)), None)
    if found is None or task not in ("auto", found):
        expected = f"a class that ends with {', '.join(TASKS)}" if found is None else f"auto or {found}"
        raise HuggingFaceError(f"task: expected {expected}, got {kind if found is None else task}")
    limit = max_length_of(model.config) if stock.patches is None else stock.patches.num_steps
    options = {**_reads(model, stock), **_answers(model.config, found, tokenizer)}
    offsets = [0] if stock.pad is None else [0, stock.pad + 1]
    poolings: list[str | None] = list(POOLINGS) if options["task"] == "classify_sequence" else [None]
    sequences = _samples(model, stock)
    truth = [stock.answer(sequence).logits[0] for sequence in sequences]
    packed = PackedModel(model, seen, settings)
    for offset in offsets:
        packed.offset = offset
        for pooling in poolings:
            interface = Interface(max_length=limit - offset, pooling=pooling, **options)
            if _agrees(packed, interface, sequences, truth):
                if tokenizer is not None:
                    read_tokenizer(tokenizer, interface)
                return packed, interface
    tried = "positions" if poolings == [None] else "positions and pools by first, last or mean"
    raise HuggingFaceError(
        f"{kind}: packed, it does not answer as it does by itself: expected a model that counts {tried} as others do"
    )


def _reads(model: PreTrainedModel, stock: StockModel) -> dict[str, Any]:
    """What it reads: ids, or the patches of an image, after the first of the rows that go before them."""
    patches = stock.patches
    if patches is None:
        return {"vocabulary_size": model.config.get_text_config().vocab_size}
    return {"num_features": patches.num_features, "leading_row": patches.num_leading > 0}


def _answers(config: Any, task: str, tokenizer: Path | None) -> dict[str, Any]:
    """What it answers."""
    if task == "next_token":
        return {"task": task}
    if task == "fill_mask":
        size = config.get_text_config().vocab_size
        return {"task": "classify_token", "num_classes": size, "labels": _spell(tokenizer, size)}
    return {"task": task, "num_classes": config.num_labels, "labels": _labels(config)}


def _samples(model: PreTrainedModel, stock: StockModel) -> list[NDArray[Any]]:
    """Sequences of a few lengths, and a whole image."""
    if stock.patches is None:
        return [stock.readable(sample_ids(model, length)[0].numpy()) for length in LENGTHS]
    patches, generator = stock.patches, np.random.default_rng(0)
    lengths = sorted({min(length, patches.num_steps) for length in (*LENGTHS, patches.num_steps)})
    sequences = [generator.standard_normal((length, patches.num_features), np.float32) for length in lengths]
    return [add_leading_row(sequence) for sequence in sequences] if patches.num_leading else sequences


@torch.no_grad()
def _agrees(packed: nn.Module, interface: Interface, sequences: list[NDArray[Any]], truth: list[Tensor]) -> bool:
    oracle = copy.deepcopy(packed).double()
    largest = max(1.0, *(float(one.abs().max()) for one in truth))
    try:
        answers = predict_packed(oracle, interface, sequences)
    except (RuntimeError, IndexError):
        # A position beyond the table, or a head that takes a step which is not there.
        return False
    return all(
        found.shape == expected.shape and float((found - expected).abs().max()) <= MAX_DIFFERENCE * largest
        for found, expected in zip(answers, truth, strict=True)
    )


def _spell(tokenizer: Path | None, size: int) -> tuple[str, ...] | None:
    """The vocabulary as labels: what each id is called in the tokenizer."""
    if tokenizer is None:
        return None
    reader = TextReader(tokenizer)
    return tuple(reader.spell(index) or f"[id {index}]" for index in range(size))


def _labels(config: Any) -> tuple[str, ...]:
    names = tuple(str(config.id2label[index]) for index in range(config.num_labels))
    # Two classes of one name could not be told apart in an answer.
    return names if len(set(names)) == len(names) else tuple(f"{name} ({index})" for index, name in enumerate(names))

"""Entries: answers about attention as JSON has them, an object per sequence, layer and head."""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from attnserve.bundle import Layer
from attnserve.service.axes import column_axis, row_axis
from attnserve.service.diagnostics import DIAGNOSTICS
from attnserve.service.heads import Heads
from attnserve.service.layout import COMPARED, DIVERGENCE, INDICES, KEPT_MASS, lay_out
from attnserve.service.preprocess import PredictRequest
from attnserve.service.question import Question, Reduce

Arrays = Sequence[dict[str, NDArray[Any]]]


def describe_question(request: PredictRequest, layers: Sequence[Layer], *, causal: bool) -> dict[str, Any]:
    """What an answer is about, with everything absolute: the part that is JSON in every format."""
    question = request.attention
    assert question is not None
    variants = [layers[layer].variant for layer in question.layers]
    if question.is_paired:
        pairs = [list(pair) for pair in zip(question.layers, question.heads, strict=True)]
        asked: dict[str, Any] = {"pairs": pairs, "variants": variants}
    else:
        asked = {"layers": question.layers, "variants": variants, "heads": question.heads}
    document = {
        "quantity": question.quantity,
        "causal": causal,
        **asked,
        "queries": [steps.tolist() for steps in question.queries],
    }
    if question.keys is not None:
        document["keys"] = [steps.tolist() for steps in question.keys]
    if question.words is not None:
        document["words"] = [
            [
                {"text": text, "span": span, "steps": steps}
                for text, span, steps in zip(words.texts, words.spans, words.steps, strict=True)
            ]
            for words in question.words
        ]
        places = range(len(question.words))
        document["query_words"] = [row_axis(question, index).labels.tolist() for index in places]
        document["key_words"] = [
            column_axis(question, index, length).labels.tolist() for index, length in enumerate(request.lengths)
        ]
    tensors = lay_out(question, layers, request.lengths)[0]
    return {**document, "axes": {tensor.name: tensor.axes for tensor in tensors}}


def add_entries(document: dict[str, Any], question: Question, arrays: Arrays) -> dict[str, Any]:
    """The document with the numbers in it.

    Args:
        document: of `describe_question`, and with a comparison what the other side is.
        question: that is answered.
        arrays: per sequence, by name.
    """
    own = [{name: array for name, array in by_name.items() if not _is_compared(name)} for by_name in arrays]
    document = {**document, **_list_entries(question, document["variants"], own)}
    if question.compare is None:
        return document
    others = [
        {name.removeprefix(COMPARED): array for name, array in by_name.items() if name.startswith(COMPARED)}
        for by_name in arrays
    ]
    compared = document["comparison"]
    entries = _list_entries(question, compared["variants"], others)
    divergences = list(_list_divergences(question, arrays))
    return {**document, "comparison": {**compared, **entries, "divergences": divergences}}


def _is_compared(name: str) -> bool:
    return name.startswith(COMPARED) or name == DIVERGENCE


def _list_divergences(question: Question, arrays: Arrays) -> Iterator[dict[str, Any]]:
    single = dataclasses.replace(question, reduce=Reduce())
    for index, by_name in enumerate(arrays):
        for place in list_places(single):
            at = place.pop("at")
            yield {"sequence": index, **place, "bits": by_name[DIVERGENCE][at]}


def _list_entries(question: Question, variants: Sequence[str], arrays: Arrays) -> dict[str, list[dict[str, Any]]]:
    """Lists by the name of the field that has them; `variants` are those of the layers asked for."""
    if question.quantity == "diagnostics":
        return _list_diagnostics(question, variants, arrays)
    if question.quantity in ("qk", "metric"):
        return {"maps": [entry for index, by_name in enumerate(arrays) for entry in _list_layers(index, by_name)]}
    maps = []
    for index, by_name in enumerate(arrays):
        for place in list_places(question):
            at = place.pop("at")
            of_place = {name: array[at] for name, array in by_name.items()}
            rows = {"queries": question.queries[index]} if _has_rows_of_steps(question) else {}
            maps.append({"sequence": index, **place, **rows, **_trim(question.quantity, of_place)})
    return {"maps": maps}


def _has_rows_of_steps(question: Question) -> bool:
    return question.quantity != "received" and question.words is None and question.reduce.queries == "none"


def list_places(question: Question) -> Iterator[dict[str, Any]]:
    """`layer` and `head` of every map, None where they are put together, and where it is `at` in the arrays."""
    if question.quantity == "rollout":
        yield {"layer": None, "head": None, "at": ()}
        return
    heads = Heads(question)
    for place in np.ndindex(*heads.shape):
        named = dict(zip(heads.axes, place, strict=True))
        if "pair" in named:
            layer, head = question.layers[named["pair"]], question.heads[named["pair"]]
        else:
            layer = question.layers[named["layer"]] if "layer" in named else None
            head = question.heads[named["head"]] if "head" in named else None
        yield {"layer": layer, "head": head, "at": place}


def _list_diagnostics(question: Question, variants: Sequence[str], arrays: Arrays) -> dict[str, list[dict[str, Any]]]:
    asked = [DIAGNOSTICS[name] for name in question.diagnostics]
    of_layers = {measure for one in asked if one.axis == "layer" for measure in one.measures}
    by_layer = dict(zip(question.layers, variants, strict=True))
    of_heads = []
    listed: dict[str, list[dict[str, Any]]] = {}
    if any(one.axis != "layer" for one in asked):
        for index, by_name in enumerate(arrays):
            for place in list_places(question):
                at = place.pop("at")
                variant = by_layer[place["layer"]]
                measured = {name: array[at] for name, array in by_name.items() if name not in of_layers}
                of_heads.append({"sequence": index, **place, "variant": variant, **measured})
        listed["diagnostics"] = of_heads
    if of_layers:
        first = {layer: question.layers.index(layer) for layer in dict.fromkeys(question.layers)}
        listed["layer_diagnostics"] = [
            {"sequence": index, "layer": layer, **{name: by_name[name][place] for name in sorted(of_layers)}}
            for index, by_name in enumerate(arrays)
            for layer, place in first.items()
        ]
    return listed


def _list_layers(index: int, by_name: dict[str, NDArray[Any]]) -> Iterator[dict[str, Any]]:
    """Tensors named layers.3.query, an entry per layer."""
    by_layer: dict[int, dict[str, Any]] = {}
    for name, array in by_name.items():
        _, layer, kind = name.split(".")
        by_layer.setdefault(int(layer), {})[kind] = np.ascontiguousarray(array, np.float32)
    for number, captures in by_layer.items():
        yield {"sequence": index, "layer": number, **captures}


def _trim(name: str, arrays: dict[str, NDArray[Any]]) -> dict[str, Any]:
    """As float32; of rows that were cut down, without what fills up those that had fewer entries."""
    values = np.ascontiguousarray(arrays[name], np.float32)
    if INDICES not in arrays:
        return {name: values}
    indices, kept = arrays[INDICES], arrays[KEPT_MASS]
    if values.ndim == 1:
        num = int((indices >= 0).sum())
        return {"keys": indices[:num], name: values[:num], KEPT_MASS: kept}
    counts = (indices >= 0).sum(1).tolist()
    return {
        "keys": [row[:num].tolist() for row, num in zip(indices, counts, strict=True)],
        name: [row[:num] for row, num in zip(values, counts, strict=True)],
        KEPT_MASS: kept,
    }

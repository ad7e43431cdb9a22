"""Layout: names, axes and sizes of the tensors that answer a question, known before any work."""

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass

from attnserve.bundle import Layer
from attnserve.service.axes import column_axis, row_axis
from attnserve.service.diagnostics import DIAGNOSTICS
from attnserve.service.formats.coding import DTYPES
from attnserve.service.heads import Heads
from attnserve.service.question import Question, Reduce

INDICES, KEPT_MASS = "indices", "kept_mass"
COMPARED = "comparison."
"""Before the name of what the other side of a comparison answers."""
DIVERGENCE = "divergence_bits"
ITEM_BYTES = {**{coding: dtype.itemsize for coding, dtype in DTYPES.items()}, "int32": 4}


@dataclass(frozen=True, kw_only=True)
class Tensor:
    """A tensor of one sequence."""

    name: str
    axes: tuple[str, ...]
    shape: tuple[int, ...]
    coding: str = "float32"
    """One of `CODINGS`, or "int32"."""

    @property
    def num_values(self) -> int:
        """Numbers in it."""
        return math.prod(self.shape)

    @property
    def num_bytes(self) -> int:
        """As it is sent, without compression."""
        # A scale per row.
        scale = 4 * self.num_values // self.shape[-1] if self.coding == "uint8_sqrt" else 0
        return self.num_values * ITEM_BYTES[self.coding] + scale


def lay_out(question: Question, layers: Sequence[Layer], lengths: Sequence[int]) -> list[list[Tensor]]:
    """The tensors of every sequence, in the order they are answered.

    Args:
        question: whose answer they are.
        layers: of the model.
        lengths: of the sequences.
    """
    heads = Heads(question)
    layout = [_lay_out_one(question, heads, layers, index, length) for index, length in enumerate(lengths)]
    if question.compare is None:
        return layout
    # Of each head by itself, whatever is put together; of rollouts, which are of all heads, one.
    single = Heads(dataclasses.replace(question, reduce=Reduce()))
    axes, shape = ((), ()) if question.quantity == "rollout" else (single.axes, single.shape)
    divergence = Tensor(name=DIVERGENCE, axes=axes, shape=shape)
    return [
        [*tensors, *(dataclasses.replace(one, name=f"{COMPARED}{one.name}") for one in tensors), divergence]
        for tensors in layout
    ]


def _lay_out_one(question: Question, heads: Heads, layers: Sequence[Layer], index: int, length: int) -> list[Tensor]:
    if question.quantity == "diagnostics":
        return _lay_out_diagnostics(question, heads, length)
    rows, columns = _count_rows(question, index), _count_columns(question, index, length)
    if question.quantity in ("qk", "metric"):
        return _lay_out_captures(question, layers, rows, columns)
    axes, shape = heads.axes, heads.shape
    if question.quantity == "rollout":
        axes, shape = (), ()
    if question.quantity != "received" and question.reduce.queries == "none":
        axes, shape = (*axes, "query"), (*shape, rows)
    name, coding = question.quantity, question.dtype
    if not question.is_sparse:
        return [Tensor(name=name, axes=(*axes, "key"), shape=(*shape, columns), coding=coding)]
    kept = (*shape, num_kept(question, columns))
    return [
        Tensor(name=name, axes=(*axes, "entry"), shape=kept, coding=coding),
        Tensor(name=INDICES, axes=(*axes, "entry"), shape=kept, coding="int32"),
        Tensor(name=KEPT_MASS, axes=axes, shape=shape),
    ]


def _count_rows(question: Question, index: int) -> int:
    if question.words is not None:
        return row_axis(question, index).size
    return 1 if question.reduce.queries != "none" else len(question.queries[index])


def _count_columns(question: Question, index: int, length: int) -> int:
    if question.words is not None:
        return column_axis(question, index, length).size
    return length if question.keys is None else len(question.keys[index])


def coding_of(question: Question, name: str) -> str:
    """In what type a tensor of floating numbers is sent: maps in the one asked for, what is said of them in float32."""
    last = name.rpartition(".")[2]
    is_map = last == question.quantity or (question.quantity == "qk" and last in ("query", "key"))
    return question.dtype if is_map else "float32"


def num_kept(question: Question, num_columns: int) -> int:
    """Entries of a row that is cut down."""
    kept = num_columns if question.top_keys is None else min(question.top_keys, num_columns)
    # Rows that sum to 1 have no more entries than this, up to rounding.
    sums_to_one = question.quantity != "weighted" and question.reduce.queries != "sum"
    if question.min_weight > 0 and sums_to_one and {question.reduce.heads, question.reduce.layers} <= {"none", "mean"}:
        kept = min(kept, math.floor(1.001 / question.min_weight))
    return kept


def _lay_out_diagnostics(question: Question, heads: Heads, length: int) -> list[Tensor]:
    tensors = []
    for name in question.diagnostics:
        axes, shape = heads.axes, heads.shape
        axis = DIAGNOSTICS[name].axis
        if axis == "layer":
            axes, shape = axes[:1], shape[:1]
        elif axis == "key":
            axes, shape = (*axes, "key"), (*shape, length)
        elif axis == "other head":
            axes, shape = (*axes, "other_head"), (*shape, shape[-1])
        tensors += [Tensor(name=measure, axes=axes, shape=shape) for measure in DIAGNOSTICS[name].measures]
    return tensors


def _lay_out_captures(question: Question, layers: Sequence[Layer], rows: int, columns: int) -> list[Tensor]:
    num_heads, tensors = len(question.heads), []
    for index in dict.fromkeys(question.layers):
        layer = layers[index]
        size, prefix = layer.head_size, f"layers.{index}."
        per_query, per_key = ("head", "query", "channel"), ("head", "key", "channel")
        if question.quantity == "metric":
            if "metric" in layer.captures:
                shape = (num_heads, rows, size)
                tensors.append(Tensor(name=f"{prefix}metric", axes=per_query, shape=shape, coding=question.dtype))
            continue
        tensors += [
            Tensor(name=f"{prefix}query", axes=per_query, shape=(num_heads, rows, size), coding=question.dtype),
            Tensor(name=f"{prefix}key", axes=per_key, shape=(num_heads, columns, size), coding=question.dtype),
            Tensor(name=f"{prefix}normaliser", axes=per_query[:2], shape=(num_heads, rows)),
            Tensor(name=f"{prefix}value_norm", axes=per_key[:2], shape=(num_heads, columns)),
        ]
    return tensors

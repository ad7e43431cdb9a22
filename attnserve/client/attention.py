"""`Attention`: what heads attended to, as arrays, with what their axes are; notebooks draw it."""

from collections.abc import Mapping
from dataclasses import dataclass
from email.message import Message
from typing import Any

from numpy.typing import NDArray

from attnserve.client.answers import Prediction, Token, read_predictions, read_tokens
from attnserve.client.tensors import Tensors

Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Attention:
    """The answer to a question about attention, with the predictions of the same forward pass."""

    model: str
    version: int
    predictions: tuple[Prediction, ...]
    """One per sequence, in the order sent."""
    tokens: tuple[tuple[Token, ...], ...]
    """Per sequence, what steps and keys are."""
    warnings: tuple[str, ...]
    """What a reader of these answers must know."""
    arrays: tuple[Arrays, ...]
    """Per sequence, by name: a quantity, or a measure of diagnostics. NaN is no number."""
    max_row_error: float
    """What the row lost by its type that lost most: half the sum of absolute differences."""
    document: Mapping[str, Any]
    """The rest of the answer, by the names of docs/attention-api.md: `ablation`, `comparison`, `words` and all."""

    def __getitem__(self, name: str) -> NDArray[Any]:
        """The array of that name, of the only sequence there is.

        Raises:
            ValueError: there are several; `arrays` has them.
            KeyError: no array has that name.
        """
        if len(self.arrays) != 1:
            raise ValueError(f"expected an answer about one sequence, got {len(self.arrays)}: arrays[0][{name!r}]")
        if name not in self.arrays[0]:
            raise KeyError(f"expected one of {', '.join(self.arrays[0])}, got {name!r}")
        return self.arrays[0][name]

    @property
    def quantity(self) -> str:
        """As asked for."""
        return str(self.document["quantity"])

    @property
    def layers(self) -> list[int]:
        """Absolute, in the order asked for; of pairs, the layer of each."""
        pairs = self.document.get("pairs")
        return list(self.document["layers"]) if pairs is None else [layer for layer, _ in pairs]

    @property
    def heads(self) -> list[int]:
        """As `layers`."""
        pairs = self.document.get("pairs")
        return list(self.document["heads"]) if pairs is None else [head for _, head in pairs]

    @property
    def variants(self) -> list[str]:
        """How each of `layers` attends."""
        return list(self.document["variants"])

    @property
    def queries(self) -> list[list[int]]:
        """Steps of the rows, per sequence."""
        return list(self.document["queries"])

    @property
    def axes(self) -> dict[str, list[str]]:
        """Of each array, by name."""
        return dict(self.document["axes"])

    def picture(self) -> bytes | None:
        """A PNG of the first sequence: its maps, or which heads measure what; None of what is no picture."""
        from attnserve.client.pictures import draw_attention

        return draw_attention(self)

    def _repr_png_(self) -> bytes | None:
        return self.picture()

    def __repr__(self) -> str:
        shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in self.arrays[0].items())
        more = f", and {len(self.arrays) - 1} more sequences" if len(self.arrays) > 1 else ""
        return f"Attention({self.model}/{self.version}: {shapes}{more})"


def read_attention(tensors: Tensors, headers: Message, told: Mapping[str, Any] | None = None) -> Attention:
    """An answer of the attention route.

    Args:
        tensors: its body.
        headers: of it.
        told: what was told before and is not in it, of a capture.
    """
    document = {**(told or {}), **tensors.document}
    num_sequences = len(document["queries"])
    arrays: tuple[Arrays, ...] = tuple({} for _ in range(num_sequences))
    for name, array in tensors.arrays.items():
        _, index, rest = name.split(".", 2)
        arrays[int(index)][rest] = array
    return Attention(
        model=document["model"],
        version=document["version"],
        predictions=read_predictions(document["predictions"]),
        tokens=read_tokens(document["tokens"]),
        warnings=tuple(document["warnings"]),
        arrays=arrays,
        max_row_error=float(headers.get("Attention-Max-Row-Error", 0)),
        document=document,
    )

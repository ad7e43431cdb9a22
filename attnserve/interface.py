"""The interface of a model: what it reads and what it answers. Standard library only.

Configs and manifests carry these fields, so a combination that makes no sense is refused in the same words everywhere.
"""

from dataclasses import dataclass

from attnserve.records import check_types

TASKS = ("next_token", "classify_token", "classify_sequence")
POOLINGS = ("first", "last", "mean")
MAX_SIZE = 2**24
"""Of every dimension. Products of two stay inside int64, so what is too large is refused by its name."""


@dataclass(frozen=True, kw_only=True)
class Interface:
    """What a model reads and what it answers: all that packing, golden and the service need to know of it."""

    task: str
    """One of `TASKS`."""
    max_length: int
    """Longest sequence, in steps as they are sent."""
    vocabulary_size: int | None = None
    """Ids run from 0 up to this; None if the model reads features."""
    num_features: int | None = None
    """Numbers per step; None if the model reads ids."""
    num_classes: int | None = None
    """Of `classify_*`; None for `next_token`, whose classes are the vocabulary."""
    pooling: str | None = None
    """How `classify_sequence` makes one answer of all steps: one of `POOLINGS`."""
    leading_row: bool = False
    """Whether a row of zeros goes before the features of every sequence, for the model to fill and pool from."""
    labels: tuple[str, ...] | None = None
    """A name per class; for `next_token`, per token id."""

    def __post_init__(self) -> None:
        """Refuse what no model could be.

        Raises:
            ValueError: names the field, what was expected and what came.
        """
        check_types(self)
        check_choice("task", self.task, TASKS)
        for name in ("max_length", "vocabulary_size", "num_features", "num_classes"):
            value = getattr(self, name)
            if value is not None and not 1 <= value <= MAX_SIZE:
                raise ValueError(f"{name}: expected an integer from 1 to {MAX_SIZE}, got {value}")
        if (self.vocabulary_size is None) == (self.num_features is None):
            got = "neither" if self.num_features is None else "both"
            raise ValueError(f"vocabulary_size: expected either that or num_features, got {got}")
        if self.task == "next_token" and self.vocabulary_size is None:
            raise ValueError("task: next_token predicts ids and needs a vocabulary_size, got num_features")
        if self.task == "next_token" and self.num_classes is not None:
            raise ValueError(f"num_classes: next_token has its vocabulary; expected none, got {self.num_classes}")
        if self.task != "next_token" and self.num_classes is None:
            raise ValueError(f"num_classes: {self.task} needs a number of classes, got none")
        if self.task == "classify_sequence":
            check_choice("pooling", self.pooling, POOLINGS)
        elif self.pooling is not None:
            raise ValueError(f"pooling: only classify_sequence pools; expected none, got {self.pooling!r}")
        if self.leading_row and (self.num_features is None or self.task != "classify_sequence"):
            raise ValueError("leading_row: only models that classify sequences of features have one, got true")
        self._check_labels()

    def _check_labels(self) -> None:
        if self.labels is None:
            return
        if len(self.labels) != self.num_outputs:
            source = "vocabulary_size" if self.num_classes is None else "num_classes"
            raise ValueError(f"labels: expected {self.num_outputs} ({source}), got {len(self.labels)}")
        if len(set(self.labels)) != len(self.labels):
            raise ValueError("labels: expected distinct names, got duplicates")
        for index, label in enumerate(self.labels):
            # JSON can spell half of a surrogate pair; no answer that names it could be encoded.
            if label.encode(errors="replace").decode() != label:
                raise ValueError(f"labels[{index}]: expected text that UTF-8 can encode, got {label!a}")

    @property
    def num_outputs(self) -> int:
        """Logits per answer."""
        outputs = self.vocabulary_size if self.num_classes is None else self.num_classes
        assert outputs is not None
        return outputs

    @property
    def max_steps(self) -> int:
        """Rows of the longest sequence, its leading row included."""
        return self.max_length + self.leading_row

    @property
    def has_rows(self) -> bool:
        """Whether the graph is told which rows to answer for; mean pooling answers for every sequence."""
        return self.pooling != "mean"

    def answer_step(self, length: int) -> int:
        """The step that speaks for a sequence of `length` rows; with mean pooling all do, and this only names it."""
        return length - 1 if self.pooling == "last" else 0


def check_top_k(top_k: object, interface: Interface) -> None:
    """Raise `ValueError` unless so many entries of an answer can be chosen."""
    if type(top_k) is not int or not 1 <= top_k <= interface.num_outputs:
        what = "the vocabulary" if interface.num_classes is None else "its classes"
        raise ValueError(f"top_k: expected an integer from 1 to {interface.num_outputs} ({what}), got {top_k!r}")


def check_choice(field: str, value: object, choices: tuple[str, ...]) -> None:
    """Raise `ValueError` naming the field unless `value` is one of `choices`."""
    if value not in choices:
        raise ValueError(f"{field}: expected one of {', '.join(choices)}, got {value!r}")

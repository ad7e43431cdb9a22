"""What happened while a model trained, and its CSV file."""

import csv
from dataclasses import dataclass, field
from pathlib import Path

COLUMNS = ("step", "loss", "rate", "score")


@dataclass(kw_only=True)
class History:
    """What happened while a model trained."""

    losses: list[float] = field(default_factory=list)
    """Of every step."""
    rates: list[float] = field(default_factory=list)
    """Of every step."""
    scores: dict[int, float] = field(default_factory=dict)
    """By the number of steps that were done."""

    def first_step_at(self, score: float) -> int | None:
        """Steps after which the score was reached for the first time; None if it never was."""
        return next((step for step, reached in self.scores.items() if reached >= score), None)

    def write(self, path: str) -> None:
        """A line per step, counted from 1; the score is that of the model after the step, where one was taken."""
        with Path(path).open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(COLUMNS)
            for step, (loss, rate) in enumerate(zip(self.losses, self.rates, strict=True), 1):
                score = self.scores.get(step)
                writer.writerow([step, f"{loss:.6g}", f"{rate:.6g}", "" if score is None else f"{score:.6g}"])

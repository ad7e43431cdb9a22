"""The training loop: fresh batches, one optimiser, a progress bar. Knows no task."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

from attnserve.interface import check_choice

OPTIMIZERS = ("sgd", "adamw")


@dataclass(frozen=True, kw_only=True)
class Batch:
    """What one step trains on: a packed batch, and what should have been predicted where."""

    inputs: Int[Tensor, " T"] | Float[Tensor, "T F"]
    positions: Int[Tensor, " T"]
    slots: Int[Tensor, "B N"]
    rows: Int[Tensor, " R"]
    """Packed rows that are scored."""
    targets: Int[Tensor, " R"]


@dataclass(frozen=True, kw_only=True)
class TrainingSettings:
    """How a model is trained. The defaults are for small models on synthetic sequences."""

    steps: int
    optimizer: str = "sgd"
    lr: float = 0.3
    momentum: float = 0.8
    """For sgd; adamw has betas 0.9 and 0.99, and no weight decay."""
    warmup: int = 50
    """Steps over which the rate grows linearly to `lr`."""
    cooldown: int = 0
    """Last steps, over which the rate falls linearly towards 0."""
    clip: float = 1.0
    """Largest norm of the gradient."""

    def __post_init__(self) -> None:
        """Refuse what no run could mean.

        Raises:
            ValueError: names the field, what was expected and what came.
        """
        check_choice("optimizer", self.optimizer, OPTIMIZERS)
        for field, lowest in (("steps", 1), ("warmup", 0), ("cooldown", 0)):
            if getattr(self, field) < lowest:
                raise ValueError(f"{field}: expected an integer >= {lowest}, got {getattr(self, field)}")
        for field in ("lr", "clip"):
            if not math.isfinite(getattr(self, field)) or getattr(self, field) <= 0:
                raise ValueError(f"{field}: expected a finite number > 0, got {getattr(self, field)}")

    def rate_at(self, step: int) -> float:
        """The learning rate of a step, counted from 0."""
        rising = (step + 1) / self.warmup if step < self.warmup else 1.0
        left = self.steps - step
        falling = left / (self.cooldown + 1) if left <= self.cooldown else 1.0
        return self.lr * min(rising, falling)


def train(
    model: nn.Module, batches: Iterator[Batch], settings: TrainingSettings, *, progress: bool = True
) -> list[float]:
    """Train `model` in place, one step per batch drawn, and return the loss of every step.

    The loss is the mean cross entropy over the scored rows. Randomness is the caller's: it is all in `batches`.

    Raises:
        RuntimeError: the loss is not a finite number; a smaller rate is needed.
    """
    optimizer = optimizer_of(model, settings)
    losses: list[float] = []
    model.train()
    bar = tqdm(range(settings.steps), desc="train", unit="step", disable=not progress)
    for step in bar:
        batch = next(batches)
        for group in optimizer.param_groups:
            group["lr"] = settings.rate_at(step)
        logits = model(batch.inputs, batch.positions, batch.slots, batch.rows)
        loss = functional.cross_entropy(logits, batch.targets)
        losses.append(loss.item())
        if not math.isfinite(losses[-1]):
            raise RuntimeError(f"loss is {losses[-1]} at step {step}; try a smaller rate than {settings.lr}")
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters(), settings.clip)
        optimizer.step()
        if step % 20 == 0 or step == settings.steps - 1:
            accuracy = (logits.argmax(-1) == batch.targets).float().mean().item()
            bar.set_postfix(loss=f"{losses[-1]:.4f}", accuracy=f"{accuracy:.3f}", length=batch.slots.shape[1])
    model.eval()
    return losses


def optimizer_of(model: nn.Module, settings: TrainingSettings) -> torch.optim.Optimizer:
    """The optimiser that `settings` name."""
    if settings.optimizer == "sgd":
        return torch.optim.SGD(model.parameters(), lr=settings.lr, momentum=settings.momentum)
    return torch.optim.AdamW(model.parameters(), lr=settings.lr, betas=(0.9, 0.99), weight_decay=0.0)

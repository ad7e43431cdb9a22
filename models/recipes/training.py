"""The training loop: fresh batches, one optimiser, scores on the way, a progress bar. Knows no task."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional
from tqdm import tqdm

from attnserve.interface import check_choice
from attnserve.models.recipes.history import History
from attnserve.models.recipes.resuming import Keeper

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
        for name, lowest in (("steps", 1), ("warmup", 0), ("cooldown", 0)):
            if getattr(self, name) < lowest:
                raise ValueError(f"{name}: expected an integer >= {lowest}, got {getattr(self, name)}")
        for name in ("lr", "clip"):
            if not math.isfinite(getattr(self, name)) or getattr(self, name) <= 0:
                raise ValueError(f"{name}: expected a finite number > 0, got {getattr(self, name)}")

    def rate_at(self, step: int) -> float:
        """The learning rate of a step, counted from 0."""
        rising = (step + 1) / self.warmup if step < self.warmup else 1.0
        left = self.steps - step
        falling = left / (self.cooldown + 1) if left <= self.cooldown else 1.0
        return self.lr * min(rising, falling)


@dataclass(frozen=True, kw_only=True)
class Watch:
    """Scores while a model trains, and when they end the training."""

    score: Callable[[], float]
    """Of the model as it is, on data that is neither trained nor tested on; larger is better."""
    every: int
    """Steps from one score to the next."""
    stop_at: float | None = None
    """Two scores in a row that reach it end the training: one may be luck."""
    patience: int = 0
    """So many scores in a row that are no better than one before them end the training; 0 is never."""

    def __post_init__(self) -> None:
        """Refuse what cannot be counted.

        Raises:
            ValueError: names the field, what was expected and what came.
        """
        for name, lowest in (("every", 1), ("patience", 0)):
            if getattr(self, name) < lowest:
                raise ValueError(f"{name}: expected an integer >= {lowest}, got {getattr(self, name)}")

    def is_over(self, scores: list[float]) -> bool:
        """Whether these scores, the newest last, end the training."""
        if self.stop_at is not None and len(scores) > 1 and min(scores[-2:]) >= self.stop_at:
            return True
        return 0 < self.patience < len(scores) - scores.index(max(scores))


def train(
    model: nn.Module,
    batches: Iterator[Batch],
    settings: TrainingSettings,
    *,
    watch: Watch | None = None,
    keeper: Keeper | None = None,
    progress: bool = True,
) -> History:
    """Train `model` in place, one step per batch drawn, for as many steps as settings say or until `watch` ends it.

    The loss is the mean cross entropy over the scored rows. Randomness is the caller's: it is all in `batches`. With a
    `keeper` that has a state of this run, training goes on from there.

    Raises:
        RuntimeError: the loss is not a finite number; a smaller rate is needed.
        ValueError: the state that is kept is of another run.
    """
    optimizer = optimizer_of(model, settings)
    history = History() if keeper is None else keeper.restore(model, optimizer)
    num_done = len(history.losses)
    for _ in range(num_done):
        next(batches)
    model.train()
    steps = range(num_done, settings.steps)
    bar = tqdm(steps, desc="train", unit="step", initial=num_done, total=settings.steps, disable=not progress)
    for step in bar:
        batch = next(batches)
        rate = settings.rate_at(step)
        for group in optimizer.param_groups:
            group["lr"] = rate
        logits = model(batch.inputs, batch.positions, batch.slots, batch.rows)
        loss = functional.cross_entropy(logits, batch.targets)
        history.losses.append(loss.item())
        history.rates.append(rate)
        if not math.isfinite(history.losses[-1]):
            raise RuntimeError(f"loss is {history.losses[-1]} at step {step}; try a smaller rate than {settings.lr}")
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters(), settings.clip)
        optimizer.step()
        if step % 20 == 0 or step == settings.steps - 1:
            accuracy = (logits.argmax(-1) == batch.targets).float().mean().item()
            loss_now = f"{history.losses[-1]:.4f}"
            bar.set_postfix(loss=loss_now, accuracy=f"{accuracy:.3f}", length=batch.slots.shape[1])
        if watch is not None and (step + 1) % watch.every == 0:
            history.scores[step + 1] = watch.score()
            if watch.is_over(list(history.scores.values())):
                bar.close()
                break
        if keeper is not None and (step + 1) % keeper.every == 0:
            keeper.save(model, optimizer, history)
    model.eval()
    return history


def optimizer_of(model: nn.Module, settings: TrainingSettings) -> torch.optim.Optimizer:
    """The optimiser that `settings` name."""
    if settings.optimizer == "sgd":
        return torch.optim.SGD(model.parameters(), lr=settings.lr, momentum=settings.momentum)
    return torch.optim.AdamW(model.parameters(), lr=settings.lr, betas=(0.9, 0.99), weight_decay=0.0)

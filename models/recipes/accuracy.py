"""How often a model is right about the recurrence: reading the true sequence, and reading its own."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Int
from numpy.typing import NDArray
from tqdm import tqdm

from attnserve.models.recipes.recurrence import NT
from attnserve.models.transformer import Transformer

Predictor = Callable[[NDArray[np.int64]], NDArray[np.int64]]
"""[S, N] tokens -> [S, N]: the most likely next token after every position."""


def greedy(model: Transformer, *, max_tokens: int = 8192) -> Predictor:
    """The model as a predictor; several passes of at most `max_tokens` tokens (or one sequence) each."""

    @torch.no_grad()
    def predict(tokens: NDArray[np.int64]) -> NDArray[np.int64]:
        chunk = max(1, max_tokens // tokens.shape[1])
        logits = (
            torch.stack(model.predict(list(tokens[start : start + chunk]))) for start in range(0, len(tokens), chunk)
        )
        return np.concatenate([part.argmax(-1).numpy() for part in logits])

    return predict


def teacher_forced_accuracy(predict: Predictor, task: NT, sequences: Int[np.ndarray, "S N"]) -> float:
    """Share of right next tokens, scored on predictable positions only; the context is always the true one."""
    return float(right_tokens(predict, task, sequences).mean())


def right_tokens(predict: Predictor, task: NT, sequences: Int[np.ndarray, "S N"]) -> Bool[np.ndarray, "S n"]:
    """Which next tokens are right, from step `task.first_scored` on; the context is always the true one."""
    predicted = predict(sequences[:, :-1])[:, task.first_scored - 1 :]
    return np.asarray(predicted == sequences[:, task.first_scored :])


@dataclass(frozen=True, kw_only=True)
class FreeRunning:
    """Scores of continuations in which the model reads its own tokens, against the recurrence from the same start."""

    tokens_right: float
    """Share of generated tokens; after a first error the true continuation is another one, so most others are wrong."""
    sequences_exact: float
    """Share of sequences without any wrong token."""


def free_running_accuracy(
    predict: Predictor, task: NT, starts: Int[np.ndarray, "S n"], length: int, *, progress: bool = False
) -> FreeRunning:
    """Continue `starts` (`task.first_scored` tokens or more) greedily to `length` tokens, and compare."""
    true = task.extend(starts, length)
    generated = continue_greedily(predict, task, starts, length, progress=progress)
    right = (generated == true)[:, starts.shape[1] :]
    return FreeRunning(tokens_right=float(right.mean()), sequences_exact=float(right.all(axis=1).mean()))


def continue_greedily(
    predict: Predictor, task: NT, starts: Int[np.ndarray, "S n"], length: int, *, progress: bool = False
) -> Int[np.ndarray, "S {length}"]:
    """What the model generates token by token, in few passes.

    A guess of the whole continuation (by the recurrence, from what is settled) is read in one pass. A causal model's
    answers up to and including the first one that differs from the guess are what it would have generated, so they are
    settled, and the rest is guessed anew. A right model takes one pass, a useless one as many as there are tokens.
    """
    tokens: NDArray[np.int64] = task.extend(starts, length)
    settled = np.full(len(starts), starts.shape[1])
    with tqdm(total=len(starts), desc="continue", unit="sequence", disable=not progress) as bar:
        while len(open_ := np.flatnonzero(settled < length)):
            predicted = predict(tokens[open_, :-1])
            for row, answers in zip(open_, predicted, strict=True):
                differs = answers[settled[row] - 1 :] != tokens[row, settled[row] :]
                if not differs.any():
                    settled[row] = length
                    continue
                first = settled[row] + int(differs.argmax())
                tokens[row, first] = answers[first - 1]
                settled[row] = first + 1
                tokens[row] = task.extend(tokens[row : row + 1, : first + 1], length)[0]
            bar.update(int((settled >= length).sum()) - bar.n)
    return tokens

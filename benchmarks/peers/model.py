"""What every peer does with the model: open it, feed it, read the answer. Needs numpy and onnxruntime only.

Every server and the bare baseline use these very functions, so that what differs between them is the serving.
"""

import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnxruntime
from numpy.typing import NDArray

Feeds = dict[str, NDArray[np.int64]]
NO_ROWS = np.empty(0, np.int64)
# Of the environment that the runner gives every server.
MODEL, PORT, BATCH_SIZE = "PEERS_MODEL", "PEERS_PORT", "PEERS_BATCH_SIZE"


def open_session(path: str | None = None) -> onnxruntime.InferenceSession:
    """The model on one thread that does not spin, with the options that attnserve uses."""
    onnxruntime.disable_telemetry_events()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(path or os.environ[MODEL], options, providers=["CPUExecutionProvider"])


def feeds_of_one(sequence: Sequence[int]) -> Feeds:
    """The graph's inputs for one sequence, asking for the logits of its last step."""
    length = len(sequence)
    return {
        "tokens": np.array(sequence, np.int64),
        "positions": np.arange(length),
        "slots": np.arange(length)[None],
        "rows": np.array([length - 1]),
        "capture": NO_ROWS,
    }


def feeds_of_padded(sequences: Sequence[Sequence[int]]) -> Feeds:
    """The graph's inputs for a batch padded to its longest sequence, as whoever uses these servers writes it.

    The graph knows nothing of padding: each row is handed over as a sequence of equal length N, whose last steps are
    token 0. The model is causal, so a step sees none of the steps after it, and the logits that are asked for, those of
    each sequence's own last step, are what they are without padding. What padding costs is real all the same.
    """
    lengths = np.array([len(sequence) for sequence in sequences])
    num_sequences, longest = len(lengths), int(lengths.max())
    tokens = np.zeros((num_sequences, longest), np.int64)
    for row, sequence in zip(tokens, sequences, strict=True):
        row[: len(sequence)] = sequence
    slots = np.arange(num_sequences * longest).reshape(num_sequences, longest)
    return {
        "tokens": tokens.reshape(-1),
        "positions": np.tile(np.arange(longest), num_sequences),
        "slots": slots,
        "rows": slots[:, 0] + lengths - 1,
        "capture": NO_ROWS,
    }


def run(session: onnxruntime.InferenceSession, feeds: Feeds) -> NDArray[np.float32]:
    """[R, vocabulary] logits."""
    (logits,) = session.run(["logits"], feeds)
    return logits


def read_answer(logits: NDArray[np.float32]) -> dict[str, Any]:
    """The likeliest next token, with the fields that attnserve gives it."""
    token = int(logits.argmax())
    likeliest = float(logits[token])
    return {"id": token, "probability": float(1 / np.exp(logits - likeliest).sum()), "logit": likeliest}


def predict_one(session: onnxruntime.InferenceSession, sequence: Sequence[int]) -> dict[str, Any]:
    return read_answer(run(session, feeds_of_one(sequence))[0])


def predict_padded(session: onnxruntime.InferenceSession, sequences: Sequence[Sequence[int]]) -> list[dict[str, Any]]:
    return [read_answer(logits) for logits in run(session, feeds_of_padded(sequences))]


def port() -> int:
    return int(os.environ[PORT])


def batch_size() -> int:
    """Most sequences of a batch; 1 is without batching."""
    return int(os.environ[BATCH_SIZE])

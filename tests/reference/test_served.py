"""The real server against the reader written from docs/checkpoint.md alone, over HTTP and nothing else."""

import json
import math
from collections.abc import Iterator
from functools import cache
from typing import Any

import httpx
import numpy as np
import pytest
from numpy.typing import NDArray
from safetensors.numpy import load

from tests.reference import numpy_transformer
from tests.reference.conftest import COMMITTED, FORWARD_LAYERS, Served

pytestmark = pytest.mark.http

LOGITS_ERROR = 5e-5
WEIGHTS_ERROR = 1e-4
MAX_LENGTH = 300
MODELS = [*COMMITTED, "forward", "both-ways"]
RECURRENCES = [name for name in COMMITTED if name.startswith("nt-")]
NUM_STARTS = 200
CONTINUED_LENGTH = 512
# An answer has at most so many ranked tokens.
MOST_RANKED = 65536
SEQUENCES_PER_REQUEST = MOST_RANKED // CONTINUED_LENGTH

read_checkpoint = cache(numpy_transformer.load)


@pytest.fixture(scope="module")
def client(served: Served) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=f"{served.url}/v1/models/", timeout=120) as client:
        yield client


def random_sequences(
    model: numpy_transformer.Model, seed: int, num_sequences: int, longest: int = MAX_LENGTH
) -> list[Any]:
    rng = np.random.default_rng(seed)
    longest = min(longest, MAX_LENGTH, model.config["max_length"])
    lengths = [1, longest, *rng.integers(1, longest + 1, size=num_sequences - 2)]
    if model.config["num_features"] is not None:
        vectors = [rng.standard_normal((length, model.config["num_features"])) for length in lengths]
        return [rows.astype(np.float32).tolist() for rows in vectors]
    return [rng.integers(model.config["vocabulary_size"], size=length).tolist() for length in lengths]


def num_outputs(model: numpy_transformer.Model) -> int:
    return int(model.config["num_classes"] or model.config["vocabulary_size"])


def once_per_sequence(model: numpy_transformer.Model) -> bool:
    return bool(model.config["task"] == "classify_sequence")


def post(client: httpx.Client, path: str, body: dict[str, Any], accept: str = "application/json") -> httpx.Response:
    answer = client.post(path, json=body, headers={"Accept": accept})
    assert answer.status_code == 200, answer.text
    assert answer.headers["Content-Type"] == accept
    return answer


def served_logits(
    client: httpx.Client, name: str, sequences: list[Any], model: numpy_transformer.Model
) -> list[NDArray[np.float64]]:
    """One [n, W], [n, C] or [1, C] per sequence, put together from the tokens or classes the answer ranks."""
    body = {"sequences": sequences, "top_k": num_outputs(model)}
    if not once_per_sequence(model):
        body["positions"] = "all"
    predictions = post(client, f"{name}/predict", body).json()["predictions"]
    all_logits = []
    for sequence, prediction in zip(sequences, predictions, strict=True):
        assert prediction["positions"] == (None if once_per_sequence(model) else list(range(len(sequence))))
        logits = np.full((len(prediction["top"]), num_outputs(model)), np.nan)
        for row, top in zip(logits, prediction["top"], strict=True):
            ranked = [entry["logit"] for entry in top]
            assert ranked == sorted(ranked, reverse=True)
            row[[entry["id"] for entry in top]] = ranked
        assert not np.isnan(logits).any()
        all_logits.append(logits)
    return all_logits


def served_weights(client: httpx.Client, name: str, sequences: list[Any]) -> list[NDArray[np.float32]]:
    body = {"sequences": sequences, "quantity": "weights"}
    tensors = load(post(client, f"{name}/attention", body, "application/x-safetensors").content)
    return [tensors[f"sequences.{i}.weights"] for i in range(len(sequences))]


@pytest.mark.parametrize("variant", ["dot_product", "expressive", "elliptical"])
def test_every_variant_is_committed(variant: str) -> None:
    configs = [json.loads((folder / "config.json").read_text()) for folder in COMMITTED.values()]
    assert any(layer["variant"] == variant for config in configs for layer in config["attention"])


@pytest.mark.parametrize("together", [True, False], ids=["one request", "one at a time"])
@pytest.mark.parametrize("name", MODELS)
def test_predictions(name: str, together: bool, served: Served, client: httpx.Client) -> None:
    model = read_checkpoint(served.checkpoints[name])
    num_sequences = 6
    longest = MOST_RANKED // num_outputs(model) // (num_sequences if together else 1)
    sequences = random_sequences(model, seed=3 + together, num_sequences=num_sequences, longest=longest)
    requests = [sequences] if together else [[sequence] for sequence in sequences]
    answers = [answer for request in requests for answer in served_logits(client, name, request, model)]
    for sequence, answer in zip(sequences, answers, strict=True):
        expected = numpy_transformer.logits(model, sequence)
        assert answer.shape == expected.shape
        assert np.abs(answer - expected).max() <= LOGITS_ERROR * np.abs(expected).max()


@pytest.mark.parametrize("together", [True, False], ids=["one request", "one at a time"])
@pytest.mark.parametrize("name", MODELS)
def test_weights(name: str, together: bool, served: Served, client: httpx.Client) -> None:
    model = read_checkpoint(served.checkpoints[name])
    sequences = random_sequences(model, seed=5 + together, num_sequences=6)
    requests = [sequences] if together else [[sequence] for sequence in sequences]
    answers = [answer for request in requests for answer in served_weights(client, name, request)]
    for sequence, answer in zip(sequences, answers, strict=True):
        expected = numpy_transformer.maps(model, sequence)
        assert answer.shape == expected.shape
        assert np.abs(answer - expected).max() <= WEIGHTS_ERROR
        assert (answer[~np.broadcast_to(visible(model, answer.shape[-1]), answer.shape)] == 0).all()


def visible(model: numpy_transformer.Model, num_steps: int) -> NDArray[np.bool_]:
    """[L, 1, query, key]."""
    layers = model.config["attention"]
    return np.stack(
        [numpy_transformer.allowed_keys(num_steps, model.config["causal"], layer["window"])[None] for layer in layers]
    )


def test_probabilities_are_those_of_the_logits(served: Served, client: httpx.Client) -> None:
    for name in MODELS:
        model = read_checkpoint(served.checkpoints[name])
        sequence = random_sequences(model, seed=8, num_sequences=3)[-1]
        body = {"sequences": [sequence], "top_k": num_outputs(model)}
        prediction = post(client, f"{name}/predict", body).json()["predictions"][0]
        assert prediction["positions"] == (None if once_per_sequence(model) else [len(sequence) - 1])
        powers = np.exp(numpy_transformer.logits(model, sequence)[-1])
        expected = powers / powers.sum()
        for entry in prediction["top"][0]:
            assert entry["probability"] == pytest.approx(expected[entry["id"]], rel=5e-3, abs=1e-6)


def test_a_metric_and_scores_of_nothing(served: Served, client: httpx.Client) -> None:
    """What the page says of a denominator that is 0, and of rows whose every score is."""
    model = read_checkpoint(served.checkpoints["forward"])
    tokens = random_sequences(model, seed=9, num_sequences=2)[1]
    (weights,) = served_weights(client, "forward", [tokens])
    assert (weights[4, 0] == 0).all()
    assert (weights[4, 1:].sum(axis=-1) > 0.999).all()
    # The reader with a metric of 1 in layer 1, which is dot product: the head without values attends the same.
    attention = [dict(layer) for layer in model.config["attention"]]
    assert attention[1]["variant"] == FORWARD_LAYERS[1]["variant"] == "elliptical"
    attention[1].update(variant="dot_product", scope=None, scaling=None)
    plain = numpy_transformer.Model({**model.config, "attention": attention}, model.tensors)
    expected = numpy_transformer.maps(plain, tokens)
    assert np.abs(weights[1, 1] - expected[1, 1]).max() <= WEIGHTS_ERROR
    assert np.abs(weights[1, 0] - expected[1, 0]).max() > 100 * WEIGHTS_ERROR


@pytest.mark.parametrize("name", RECURRENCES)
def test_free_running(name: str, client: httpx.Client) -> None:
    """Random starts continued by the served model alone follow its recurrence as its card says."""
    card = client.get(name).json()["card"]
    assert card["free_running_accuracy"] > 0.99
    starts = np.random.default_rng(11).integers(card["symbols"], size=(NUM_STARTS, card["delay"])).tolist()
    expected = np.array([follow(start, CONTINUED_LENGTH, card) for start in starts])
    # Greedy decoding one token per request, as a user would, for as long as that is quick ...
    stepwise = starts
    for _ in range(5 * card["delay"]):
        predictions = post(client, f"{name}/predict", {"sequences": stepwise, "top_k": 1}).json()["predictions"]
        tokens = [prediction["top"][0][0]["id"] for prediction in predictions]
        stepwise = [[*tokens_so_far, token] for tokens_so_far, token in zip(stepwise, tokens, strict=True)]
    # ... and to the end with drafts, which gives the same tokens in fewer requests.
    continued = np.array(continue_greedily(client, name, starts, card))
    assert (continued[:, : len(stepwise[0])] == np.array(stepwise)).all()
    right = (continued == expected)[:, card["delay"] :]
    assert right.mean() >= lowest_likely(card["free_running_accuracy"])
    assert right.all(axis=1).mean() >= lowest_likely(card["free_running_sequences_exact"])


def lowest_likely(accuracy: float) -> float:
    """Three standard deviations below, over the starts; what is always right has none."""
    return accuracy - 3 * math.sqrt(accuracy * (1 - accuracy) / NUM_STARTS)


def follow(tokens: list[int], length: int, card: dict[str, Any]) -> list[int]:
    """x(t) = x(t-1) + x(t-delay), mod symbols."""
    tokens = list(tokens)
    while len(tokens) < length:
        tokens.append((tokens[-1] + tokens[-card["delay"]]) % card["symbols"])
    return tokens


def continue_greedily(
    client: httpx.Client, name: str, starts: list[list[int]], card: dict[str, Any]
) -> list[list[int]]:
    """Greedy decoding with drafts: the recurrence proposes, and each token stays only if the model, shown the tokens
    before it, ranks it first; at the first other one the model's own is taken and the rest of the draft is dropped."""
    continued = [list(start) for start in starts]
    while unfinished := [tokens for tokens in continued if len(tokens) < CONTINUED_LENGTH]:
        unfinished = unfinished[:SEQUENCES_PER_REQUEST]
        drafts = [follow(tokens, CONTINUED_LENGTH, card) for tokens in unfinished]
        body = {"sequences": drafts, "top_k": 1, "positions": "all"}
        predictions = post(client, f"{name}/predict", body).json()["predictions"]
        for tokens, draft, prediction in zip(unfinished, drafts, predictions, strict=True):
            ranked_first = [top[0]["id"] for top in prediction["top"]]
            while len(tokens) < CONTINUED_LENGTH:
                tokens.append(ranked_first[len(tokens) - 1])
                if tokens[-1] != draft[len(tokens) - 1]:
                    break
    return continued

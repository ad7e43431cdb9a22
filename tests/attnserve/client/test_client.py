"""A client and a real service: what it says, typed; arrays that are those of the service; errors that name a field."""

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import pytest

from attnserve.client import Client, Model, RemoteError
from tests.conftest import free_port

pytestmark = pytest.mark.http

SEQUENCE = [1, 2, 3, 4, 5]
QUANTITIES = ["diagnostics", "weights", "signed", "scores", "weighted", "received", "rollout", "qk", "metric"]


def test_models_are_listed(client):
    (model,) = client.models()
    assert model == Model(
        name="tiny",
        version=1,
        versions=(1,),
        ready=True,
        task="next_token",
        variants=("dot_product", "elliptical", "expressive"),
        num_layers=3,
        num_heads=2,
    )
    assert client.describe("tiny")["limits"]["max_length"] == 320
    assert client.describe("tiny", version=1)["version"] == 1


def test_predictions_are_those_of_the_service(client, server):
    predicted = client.predict("tiny", [SEQUENCE, ["a", "b"]], top_k=2, positions="all")
    answer = server.ask("predict", {"sequences": [SEQUENCE, ["a", "b"]], "top_k": 2, "positions": "all"})
    assert (predicted.model, predicted.version) == ("tiny", 1)
    assert predicted.predictions[0].positions == (0, 1, 2, 3, 4)
    for prediction, shown in zip(predicted.predictions, answer["predictions"], strict=True):
        assert [[vars(entry) for entry in entries] for entries in prediction.top] == shown["top"]


@pytest.mark.parametrize(
    "sequences",
    [np.array([SEQUENCE]), [np.array(SEQUENCE)], [[np.int64(step) for step in SEQUENCE]], (tuple(SEQUENCE),)],
    ids=["array", "list of arrays", "numbers of numpy", "tuples"],
)
def test_sequences_may_be_arrays(client, sequences):
    assert client.predict("tiny", sequences) == client.predict("tiny", [SEQUENCE])


def test_a_single_text_is_no_list_of_sequences(client):
    with pytest.raises(ValueError, match="sequences: expected a list of sequences, got a single text"):
        client.predict("tiny", "a text")


def test_a_dry_run_is_a_plan(client):
    with pytest.raises(ValueError, match=r"^dry_run: expected none; plan\(\)"):
        client.attention("tiny", [SEQUENCE], dry_run=True)


def test_selections_may_be_arrays_and_ranges(client):
    sequences, selected = [SEQUENCE], {"layers": range(2), "queries": np.array([0, -1])}
    attention = client.attention(
        "tiny", sequences, quantity="weights", compare={"sequences": np.array(sequences)}, **selected
    )
    assert attention["weights"].shape == attention["comparison.weights"].shape == (2, 2, 2, 5)


def test_a_model_goes_on(client, server):
    generated = client.generate("tiny", [SEQUENCE], 3, temperature=1.0, top_k=5, seed=7)
    body = {"sequences": [SEQUENCE], "continue": 3, "temperature": 1.0, "top_k": 5, "seed": 7}
    (continuation,) = server.ask("predict", body)["continuations"]
    assert [token.id for token in generated.continuations[0].tokens] == [each["id"] for each in continuation["tokens"]]
    assert generated.continuations[0].steps == (5, 6, 7)
    assert generated.seed == 7


@pytest.mark.parametrize("quantity", QUANTITIES)
def test_every_quantity_is_what_the_plan_says(client, quantity):
    question = {"quantity": quantity, "queries": [0, -1], "heads": [1]}
    sequences = [SEQUENCE, [7, 8]]
    plan = client.plan("tiny", sequences, **question)
    attention = client.attention("tiny", sequences, **question)
    found = {
        f"sequences.{index}.{name}": (list(array.shape), attention.axes[name])
        for index, arrays in enumerate(attention.arrays)
        for name, array in arrays.items()
    }
    assert found == {name: (entry["shape"], entry["axes"]) for name, entry in plan["tensors"].items()}
    assert [len(tokens) for tokens in attention.tokens] == [5, 2]


def test_weights_are_those_of_the_service(client, server):
    attention = client.attention("tiny", [SEQUENCE], quantity="weights", layers=[-1], top_k=1)
    answer = server.ask("attention", {"sequences": [SEQUENCE], "quantity": "weights", "layers": [2]})
    shown = np.array([entry["weights"] for entry in answer["maps"]], np.float32)
    np.testing.assert_array_equal(attention["weights"][0], shown)
    assert attention["weights"].dtype == np.float32
    assert (attention.layers, attention.heads, attention.variants) == ([2], [0, 1], ["elliptical"])
    assert attention.max_row_error == 0
    assert attention._repr_png_().startswith(b"\x89PNG")


@pytest.mark.parametrize("dtype", ["float16", "uint8_sqrt"])
def test_smaller_types_lose_what_they_say(client, dtype):
    whole = client.attention("tiny", [SEQUENCE * 10], quantity="weights")["weights"]
    attention = client.attention("tiny", [SEQUENCE * 10], quantity="weights", dtype=dtype)
    lost = np.abs(attention["weights"].astype(float) - whole).sum(-1).max() / 2
    assert 0 < lost == pytest.approx(attention.max_row_error, rel=0.01)


def test_a_question_of_every_kind(client):
    question = {
        "compare": {"sequences": [[5, 4, 3, 2, 1]]},
        "ablate": [(0, 1)],
        "diagnostics": ["entropy", "importance"],
        "pairs": [(2, 1), (0, 0)],
        "special_tokens": "drop_renormalise",
    }
    attention = client.attention("tiny", [SEQUENCE], **question)
    assert attention["entropy_bits"].shape == attention["comparison.entropy_bits"].shape == (2,)
    assert attention.document["ablation"]["heads"] == [[0, 1]]
    assert (attention.layers, attention.heads) == ([2, 0], [1, 0])


def test_answers_may_be_compressed(server):
    with Client(server.url, compress=True) as client:
        attention = client.attention("tiny", [SEQUENCE * 20], quantity="weights")
        assert attention["weights"].shape == (3, 2, 100, 100)
        assert client.predict("tiny", [SEQUENCE]).version == 1


def test_what_is_wrong_is_an_error_with_its_field(client):
    with pytest.raises(RemoteError, match=r"422 layers\[0\]: expected") as caught:
        client.attention("tiny", [SEQUENCE], layers=[99])
    assert (caught.value.status, caught.value.field) == (422, "layers[0]")
    assert caught.value.faults[0].message.startswith("expected")
    with pytest.raises(RemoteError, match="404 version: tiny serves version 1, got 2") as caught:
        client.predict("tiny", [SEQUENCE], version=2)
    assert caught.value.status == 404
    with pytest.raises(RemoteError, match="404 model: expected one of tiny, got 'a b'"):
        client.predict("a b", [SEQUENCE])


def test_nobody_there_names_the_argument():
    url = f"http://127.0.0.1:{free_port()}"
    with (
        Client(url) as client,
        pytest.raises(RemoteError, match=rf"^url \(ATTNSERVE_URL\): expected a service at {url}"),
    ):
        client.models()
    with pytest.raises(ValueError, match=r"^url \(ATTNSERVE_URL\): expected http://HOST:PORT, got 'nowhere'"):
        Client("nowhere")


def test_url_and_key_come_from_the_environment(server, monkeypatch):
    monkeypatch.setenv("ATTNSERVE_URL", server.url)
    monkeypatch.setenv("ATTNSERVE_API_KEY", "secret")
    with Client() as client:
        assert client.models()[0].name == "tiny"
        assert repr(client) == f"Client('{server.url}')"
        assert "secret" not in repr(vars(client))
    with pytest.raises(ValueError, match=r"^api_key \(ATTNSERVE_API_KEY\): expected printable ASCII"):
        Client(server.url, api_key="schlüssel\n")


class Full(BaseHTTPRequestHandler):
    """Refuses twice, and then answers; over one connection."""

    protocol_version = "HTTP/1.1"
    requests: list[str]

    def do_GET(self):
        self.requests.append(self.headers.get("Authorization"))
        is_full = len(self.requests) <= 2
        body = json.dumps({"models": []} if not is_full else {"detail": "full", "errors": []}).encode()
        self.send_response(429 if is_full else 200)
        if is_full:
            self.send_header("Retry-After", "3")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def full():
    """A service that has no room at first; its URL, and the keys that it was asked with."""
    handler = type("_Full", (Full,), {"requests": []})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as served:
        served.daemon_threads = True
        thread = threading.Thread(target=served.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{served.server_port}", handler.requests
        served.shutdown()
        thread.join()


def test_a_full_service_is_asked_again_when_it_says(full):
    url, requests = full
    waits = []
    with Client(url, api_key="secret", wait=waits.append) as client:
        assert client.models() == []
    assert waits == [3, 3]
    assert requests == ["Bearer secret"] * 3


def test_nobody_waits_longer_than_they_want_to(full):
    url, requests = full
    impatient = Client(url, max_wait_s=2, wait=lambda _: pytest.fail("nobody waits here"))
    with impatient as client, pytest.raises(RemoteError, match="429 full") as caught:
        client.models()
    assert caught.value.retry_after_s == 3
    assert len(requests) == 1


def test_threads_may_share_it(client):
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda step: client.predict("tiny", [[step]]).predictions[0].best.id, range(16)))
    assert found == [client.predict("tiny", [[step]]).predictions[0].best.id for step in range(16)]

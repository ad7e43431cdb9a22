"""Captures from Python: parts of maps that are those of whole maps, and a capture that is there when it is needed."""

import io
from datetime import UTC, datetime

import numpy as np
import pytest
from PIL import Image

from attnserve.client import Client, RemoteError

pytestmark = pytest.mark.http

SEQUENCE = [1, 2, 3, 4, 5, 6, 7] * 12
CLOSE = {"rtol": 1e-4, "atol": 1e-6}


@pytest.fixture
def capture(client):
    with client.capture("tiny", SEQUENCE, top_k=2) as capture:
        yield capture


@pytest.fixture
def weights(client):
    """[layers, heads, steps, steps], as the attention route answers them."""
    return client.attention("tiny", [SEQUENCE], quantity="weights")["weights"]


def test_it_says_what_it_is_of(client, capture):
    assert (capture.model, capture.version, capture.layers) == ("tiny", 1, [0, 1, 2])
    assert (capture.num_heads, capture.length, capture.num_zooms) == (2, 84, 1)
    assert capture.expires > datetime.now(UTC)
    assert [token.id for token in capture.tokens] == SEQUENCE
    (prediction,) = client.predict("tiny", [SEQUENCE], top_k=2).predictions
    assert capture.prediction.best.id == prediction.best.id
    assert len(capture.prediction.top[0]) == 2
    assert repr(capture).startswith("Capture(tiny/1: 3 layers of 2 heads, 84 steps, until ")


def test_parts_are_those_of_whole_maps(capture, weights):
    np.testing.assert_allclose(capture.rows(2, 1), weights[2, 1, -1:], **CLOSE)
    np.testing.assert_allclose(capture.rows(-1, 0, [3, -1]), weights[2, 0, [3, -1]], **CLOSE)
    np.testing.assert_allclose(capture.weights(0, 0), weights[0, 0], **CLOSE)
    np.testing.assert_allclose(capture.tile(1, 1, 0, 0, 0), weights[1, 1], **CLOSE)
    thumbnails = capture.thumbnails(layers=[1], heads="1:")
    # The largest of two by two.
    np.testing.assert_allclose(thumbnails[0, 0], weights[1, 1].reshape(42, 2, 42, 2).max((1, 3)), **CLOSE)
    assert capture.thumbnails(dtype="float16").dtype == np.float16
    np.testing.assert_allclose(capture.rows(0, 0, dtype="uint8_sqrt"), weights[0, 0, -1:], atol=0.01)


def test_maps_can_be_made_of_queries_and_keys(capture, weights):
    qk = capture.qk(0, 1)
    scores = qk.scale * qk.query @ qk.key.T
    assert (qk.weighting, qk.causal, qk.softcap, qk.window) == ("softmax", True, 0, 0)
    np.testing.assert_allclose(np.tril(np.exp(scores - qk.normaliser[:, None])), weights[0, 1], **CLOSE)
    qk = capture.qk(1, 0)
    squares = (qk.scale * qk.query @ qk.key.T) ** 2
    made = np.tril(squares / (1 + squares)) / (qk.normaliser[:, None] + qk.epsilon)
    np.testing.assert_allclose(made, weights[1, 0], **CLOSE)
    assert qk.value_norm.shape == (84,)


def test_questions_are_answered_as_the_attention_route_does(client, capture):
    question = {"diagnostics": ["entropy", "sink"], "layers": [2, 0], "queries": {"token": "b"}}
    found, expected = capture.attention(**question), client.attention("tiny", [SEQUENCE], **question)
    assert found.queries == expected.queries
    for name in ("entropy_bits", "sink"):
        np.testing.assert_allclose(found[name], expected[name], **CLOSE)
    assert found.predictions[0].best.id == expected.predictions[0].best.id
    assert (found.layers, found.model, found.tokens) == (expected.layers, "tiny", expected.tokens)


def test_what_is_wrong_is_an_error_with_its_field(capture):
    with pytest.raises(RemoteError, match="422 layer: expected") as caught:
        capture.rows(99, 0)
    assert caught.value.field == "layer"


def test_a_notebook_shows_all_heads(capture):
    assert Image.open(io.BytesIO(capture._repr_png_())).format == "PNG"
    capture.delete()
    assert capture._repr_png_() is None


def test_one_that_is_gone_is_taken_again(client, capture, weights):
    lost = capture.id
    # As if its replica had ended.
    client._transport.ask("DELETE", f"/v1/captures/{lost}")
    np.testing.assert_allclose(capture.rows(0, 0), weights[0, 0, -1:], **CLOSE)
    assert capture.id != lost


def test_one_that_was_deleted_is_not(client):
    with client.capture("tiny", SEQUENCE, layers=[1], store="float16", keep_seconds=30) as capture:
        assert capture.layers == [1]
        assert capture.document["dtype"] == "float16"
    with pytest.raises(ValueError, match="capture: expected one that is kept, got one that was deleted"):
        capture.rows(1, 0)
    # Twice is once.
    capture.delete()
    with pytest.raises(RemoteError, match="410"):
        client._transport.ask("GET", f"/v1/captures/{capture.id}")


def test_one_that_ended_by_itself_is_no_error_in_the_end(client):
    with client.capture("tiny", SEQUENCE) as capture:
        client._transport.ask("DELETE", f"/v1/captures/{capture.id}")


def test_a_version_that_is_not_served_is_an_error(server):
    with Client(server.url) as client, pytest.raises(RemoteError, match="404 version"):
        client.capture("tiny", SEQUENCE, version=7)

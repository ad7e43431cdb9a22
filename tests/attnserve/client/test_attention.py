"""Arrays of an answer by name, and what they are of."""

import numpy as np
import pytest

from attnserve.client.attention import read_attention
from tests.attnserve.client.conftest import DOCUMENT, make_headers

WEIGHTS = np.arange(24, dtype=np.float32).reshape(2, 3, 2, 2)


def test_an_answer_about_one_sequence(make_tensors):
    headers = make_headers(attention_max_row_error="0.011")
    attention = read_attention(make_tensors({"weights": WEIGHTS}, ablation={"heads": [[0, 1]]}), headers)
    np.testing.assert_array_equal(attention["weights"], WEIGHTS)
    assert attention.max_row_error == 0.011
    assert (attention.quantity, attention.layers, attention.heads) == ("weights", [1, 0], [0, 1, 2])
    assert attention.variants == ["expressive", "dot_product"]
    assert attention.axes["weights"] == ["layer", "head", "query", "key"]
    assert attention.queries == [[0, 1]]
    assert attention.predictions[0].best.id == 3
    assert attention.document["ablation"] == {"heads": [[0, 1]]}
    assert repr(attention) == "Attention(m/2: weights [2, 3, 2, 2])"


def test_names_that_are_not_there(make_tensors):
    attention = read_attention(make_tensors({"weights": WEIGHTS}), make_headers())
    with pytest.raises(KeyError, match="expected one of weights, got 'scores'"):
        attention["scores"]


def test_several_sequences_are_told_apart(make_tensors):
    tensors = make_tensors({"weights": WEIGHTS}, queries=[[0, 1], [0]])
    tensors.arrays["sequences.1.comparison.weights"] = WEIGHTS[:1]
    attention = read_attention(tensors, make_headers())
    assert [list(arrays) for arrays in attention.arrays] == [["weights"], ["comparison.weights"]]
    assert repr(attention).endswith("weights [2, 3, 2, 2], and 1 more sequences)")
    with pytest.raises(ValueError, match="expected an answer about one sequence, got 2"):
        attention["weights"]


def test_pairs_have_a_layer_and_a_head_each(make_tensors):
    tensors = make_tensors({"weights": WEIGHTS[0]}, pairs=[[1, 0], [0, 2], [0, 0]])
    del tensors.document["layers"], tensors.document["heads"]
    attention = read_attention(tensors, make_headers())
    assert (attention.layers, attention.heads) == ([1, 0, 0], [0, 2, 0])


def test_what_a_capture_has_told_before(make_tensors):
    tensors = make_tensors({"weights": WEIGHTS})
    told = {name: tensors.document.pop(name) for name in ("predictions", "tokens", "warnings", "model", "version")}
    assert (
        read_attention(tensors, make_headers(), told).predictions[0].best.id
        == DOCUMENT["predictions"][0]["top"][0][0]["id"]
    )

"""Formats of maps against a running service: the same weights in each, what they lost, and how they were compressed."""

import gzip
import io
import re
from pathlib import Path

import numpy as np
import pytest
import zstandard
from PIL import Image
from tritonclient.http import InferResult

from attnserve.service.formats.negotiation import BINARY, FORMATS, JSON, NPZ, PNG, SAFETENSORS
from attnserve.service.formats.tensors import HEADER
from tests.http.test_attention import ask_tensors, weights_of

pytestmark = pytest.mark.http

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "formats.md").read_text("utf-8")
BODY = {"sequences": [list(range(20)) * 3], "quantity": "weights"}
WEIGHTS, SCALE = "sequences.0.weights", "sequences.0.weights.scale"


def post(server, body=BODY, **headers):
    names = {name.replace("_", "-"): text for name, text in headers.items()}
    response = server.post("attention", body, headers=names)
    assert response.status_code == 200, response.text
    return response


@pytest.fixture(scope="module")
def exact(server):
    """[layers, heads, queries, keys]"""
    return weights_of(server.ask("attention", BODY), 0)


@pytest.mark.parametrize("accept", [SAFETENSORS, NPZ])
def test_tensors_are_those_of_json(server, exact, accept):
    tensors, _ = ask_tensors(server, BODY, accept=accept)
    assert tensors.keys() == {WEIGHTS}
    np.testing.assert_array_equal(tensors[WEIGHTS], exact)


def test_tritonclient_reads_the_binary_extension(server, exact):
    response = post(server, Accept=BINARY)
    result = InferResult.from_response_body(response.content, header_length=int(response.headers[HEADER]))
    np.testing.assert_array_equal(result.as_numpy(WEIGHTS), exact)
    assert result.get_response()["model_name"] == "tiny"
    assert result.get_response()["layers"] == [0, 1, 2]


@pytest.mark.parametrize("dtype", ["float16", "uint8_sqrt"])
def test_the_error_told_is_the_error_made(server, exact, dtype):
    response = post(server, {**BODY, "dtype": dtype}, Accept=SAFETENSORS)
    tensors, _ = ask_tensors(server, {**BODY, "dtype": dtype})
    coded = tensors[WEIGHTS].astype(np.float32)
    if dtype == "uint8_sqrt":
        assert tensors[WEIGHTS].dtype == np.uint8
        coded = (coded / 255) ** 2 * tensors[SCALE][..., None]
    error = np.abs(coded - exact).sum(-1).max() / 2
    assert 0 < error < 0.02
    assert float(response.headers["Attention-Max-Row-Error"]) == pytest.approx(error, rel=0.01)
    assert (coded[exact == 0] == 0).all()


def test_json_is_exact_whatever_the_dtype(server, exact):
    np.testing.assert_array_equal(weights_of(server.ask("attention", {**BODY, "dtype": "uint8_sqrt"}), 0), exact)


def test_measures_are_not_coded(server):
    body = {"sequences": [[1, 2, 3]], "dtype": "uint8_sqrt"}
    tensors, answer = ask_tensors(server, body)
    assert {array.dtype for array in tensors.values()} == {np.dtype(np.float32)}
    response = post(server, body, Accept=SAFETENSORS)
    assert "Attention-Dtype" not in response.headers
    assert answer["quantity"] == "diagnostics"


def test_headers_say_what_is_in_the_body(server):
    body = {**BODY, "layers": [-1, 0], "heads": [1], "queries": [-1, 0, 1, 2], "dtype": "uint8_sqrt"}
    headers = post(server, body, Accept=SAFETENSORS).headers
    expected = {
        "Attention-Kind": "elliptical,dot_product",
        "Attention-Normalization": "softmax",
        "Attention-Causal": "?1",
        "Attention-Layers": "2,0",
        "Attention-Heads": "1",
        "Attention-Queries": "59,0:3",
        "Attention-Shape": "2,1,4,60",
        "Attention-Axes": "layer,head,query,key",
        "Attention-Dtype": "uint8",
        "Attention-Coding": "sqrt; scale=row; scale-dtype=float32; scale-name=scale",
        "Vary": "Accept, Accept-Encoding",
    }
    assert {name: headers[name] for name in expected} == expected
    several = post(server, {**body, "sequences": BODY["sequences"] * 2}, Accept=SAFETENSORS).headers
    assert not {"attention-queries", "attention-shape"} & several.keys()


def test_every_header_is_explained(server):
    headers = post(server, {**BODY, "dtype": "uint8_sqrt"}, Accept=SAFETENSORS).headers
    ours = [name for name in headers if name.startswith("attention-")]
    assert len(ours) >= 10
    assert not [name for name in ours if f"`{name}`" not in PAGE.lower()]


@pytest.mark.parametrize("accept", FORMATS)
@pytest.mark.parametrize("encoding", ["zstd", "gzip", "br", "identity"])
def test_compression_changes_nothing_but_the_bytes(server, accept, encoding):
    plain = post(server, Accept=accept, Accept_Encoding="identity")
    assert "Content-Encoding" not in plain.headers
    with server.client.stream(
        "POST", "/v1/models/tiny/attention", json=BODY, headers={"Accept": accept, "Accept-Encoding": encoding}
    ) as response:
        raw = b"".join(response.iter_raw())
    applied = response.headers.get("Content-Encoding", "identity")
    assert applied == (encoding if encoding in ("zstd", "gzip") and accept != PNG else "identity")
    assert int(response.headers["Content-Length"]) == len(raw)
    unpack = {"zstd": zstandard.ZstdDecompressor().decompress, "gzip": gzip.decompress, "identity": bytes}
    assert unpack[applied](raw) == plain.content
    assert applied == "identity" or len(raw) < len(plain.content)


def test_a_small_answer_is_not_compressed(server):
    body = {"sequences": [[1]], "layers": [0], "heads": [0], "diagnostics": ["self"]}
    assert "Content-Encoding" not in post(server, body, Accept_Encoding="zstd").headers


def test_no_compression_that_the_client_takes(server):
    response = server.post("attention", BODY, headers={"Accept-Encoding": "br, *;q=0"})
    assert response.status_code == 406
    assert response.json()["errors"][0]["field"] == "Accept-Encoding"


def test_a_picture_shows_every_map(server):
    response = post(server, Accept=PNG)
    assert response.headers["Content-Type"] == PNG
    with Image.open(io.BytesIO(response.content)) as image:
        image.verify()
        # Two columns of heads and three rows of layers, each 60 steps of four pixels.
        assert image.size[0] > 2 * 240
        assert image.size[1] > 3 * 240


@pytest.mark.parametrize(
    ("extra", "status", "field"),
    [
        ({"sequences": [[1], [2]]}, 422, "sequences"),
        ({"heads": [0] * 600}, 413, "layers"),
        ({"quantity": "diagnostics"}, 406, "Accept"),
    ],
)
def test_no_picture(server, extra, status, field):
    response = server.post("attention", {**BODY, **extra}, headers={"Accept": PNG})
    assert response.status_code == status
    assert response.json()["errors"][0]["field"] == field


def test_predict_has_formats_too(server, exact):
    body = {"sequences": BODY["sequences"], "attention": {"quantity": "weights"}}
    response = server.post("predict", body, headers={"Accept": BINARY, "Accept-Encoding": "zstd"})
    assert response.headers["Content-Type"] == BINARY
    assert response.headers["Attention-Shape"] == ",".join(map(str, exact.shape))
    # Of predictions alone there is nothing but JSON.
    assert server.post("predict", {"sequences": [[1]]}, headers={"Accept": BINARY}).status_code == 406


def test_encoding_is_timed(server):
    timing = post(server, Accept=SAFETENSORS).headers["Server-Timing"]
    assert [entry.partition(";")[0] for entry in timing.split(", ")][-2:] == ["render", "encode"]


def test_the_limit_counts_the_type_asked_for(server):
    # 60 sequences x 3 layers x 2 heads x 320 x 320 weights: 147 MB in float32, and 37 MB in a byte each.
    body = {"sequences": [[1] * 320] * 60, "quantity": "weights", "top_k": 1, "dtype": "uint8_sqrt"}
    response = server.post("attention", {**body, "dtype": "float16"}, headers={"Accept": SAFETENSORS})
    assert response.status_code == 413
    assert "uint8_sqrt" in response.json()["detail"]
    assert post(server, body, Accept=SAFETENSORS, Accept_Encoding="zstd").headers["Attention-Dtype"] == "uint8"


def test_the_page_works(server):
    (code,) = re.findall(r"^```python\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)
    names = {"url": server.url, "model": "tiny"}
    exec(compile(code, "docs/formats.md", "exec", dont_inherit=True), names)
    assert names["weights"].shape == (3, 2, 8, 8)
    np.testing.assert_allclose(names["weights"].sum(-1), 1, atol=0.02)
    assert names["answer"]["queries"] == [list(range(8))]


def test_formats_are_those_of_the_page():
    table = PAGE.partition("| `Accept` |")[2].partition("\n\n")[0]
    assert re.findall(r"^\| `(\w+/[\w-]+)`", table, re.MULTILINE) == list(FORMATS)
    assert FORMATS[0] == JSON

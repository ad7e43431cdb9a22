"""The Open Inference Protocol as its clients speak it: `tritonclient`, sync and asyncio, and wrong bytes."""

import asyncio
import gzip
import json
import random
import zlib

import numpy as np
import pytest
import tritonclient.http as triton
import tritonclient.http.aio as triton_aio
from tritonclient.utils import InferenceServerException

from attnserve.service.oip.request import HEADER
from tests.conftest import MAX_LENGTH
from tests.http.conftest import check_problem, talk

pytestmark = pytest.mark.http

INFER = "/v2/models/tiny/infer"
SEQUENCES = [[3, 1, 4, 1, 5, 9, 2, 6], [5, 3], [7]]
TEXTS = ["the cat at the cat", "\N{GRINNING FACE}!"]
# Two implementations of padding and packing may round differently.
CLOSE = {"rtol": 0, "atol": 1e-5}


def connect(served):
    return triton.InferenceServerClient(served.url.removeprefix("http://"), network_timeout=60)


@pytest.fixture(scope="module")
def client(server):
    with connect(server) as connected:
        yield connected


@pytest.fixture(scope="module")
def broad_client(broad):
    with connect(broad) as connected:
        yield connected


def tensor(name, array, *, binary=True, module=triton):
    kinds = {"i": "INT64", "f": "FP32", "O": "BYTES"}
    made = module.InferInput(name, list(array.shape), kinds[array.dtype.kind])
    made.set_data_from_numpy(array, binary_data=binary)
    return made


def pad(sequences):
    padded = np.full((len(sequences), max(map(len, sequences))), -(2**60))
    for row, sequence in zip(padded, sequences, strict=True):
        row[: len(sequence)] = sequence
    return padded, np.array([len(sequence) for sequence in sequences])


def padded_inputs(sequences, *, binary=True, module=triton):
    tokens, lengths = pad(sequences)
    return [
        tensor("tokens", tokens, binary=binary, module=module),
        tensor("lengths", lengths, binary=binary, module=module),
    ]


def logits_of(served, sequence, model="tiny", **options):
    """Of /v1: all entries, by id."""
    size = served.client.get(f"/v1/models/{model}").json()
    top_k = size["num_classes"] or size["vocabulary_size"]
    answer = served.ask("predict", {"sequences": [sequence], "top_k": top_k, **options}, model=model)
    tops = [sorted(top, key=lambda entry: entry["id"]) for top in answer["predictions"][0]["top"]]
    return np.array([[entry["logit"] for entry in top] for top in tops], np.float32)


def test_server(client):
    assert client.is_server_live()
    assert client.is_server_ready()
    metadata = client.get_server_metadata()
    assert metadata["name"] == "attnserve"
    assert {"binary_tensor_data", "model_repository", "statistics"} <= set(metadata["extensions"])


def test_model(client):
    assert client.is_model_ready("tiny")
    assert client.is_model_ready("tiny", "1")
    assert not client.is_model_ready("tiny", "2")
    assert not client.is_model_ready("nobody")
    metadata = client.get_model_metadata("tiny")
    assert metadata == client.get_model_metadata("tiny", "1")
    optional = {entry["name"]: entry for entry in metadata.pop("parameters")["optional_outputs"]}
    assert metadata == {
        "name": "tiny",
        "versions": ["1"],
        "platform": "onnxruntime_onnx",
        "inputs": [
            {"name": "tokens", "datatype": "INT64", "shape": [-1, -1]},
            {"name": "lengths", "datatype": "INT64", "shape": [-1]},
        ],
        "outputs": [{"name": "logits", "datatype": "FP32", "shape": [-1, -1, 20]}],
    }
    assert optional["layers.2.weights"] == {"name": "layers.2.weights", "datatype": "FP32", "shape": [-1, 2, -1, -1]}
    assert optional["layers.0.query"]["shape"] == [-1, -1, 2, 8]
    assert "layers.2.metric" in optional
    assert "layers.0.metric" not in optional


def test_config(client, broad_client):
    config = client.get_model_config("tiny")
    assert config == client.get_model_config("tiny", "1")
    assert config["max_batch_size"] == 0
    assert config["output"] == [{"name": "logits", "data_type": "TYPE_FP32", "dims": [-1, -1, 20]}]
    names = [entry["name"] for entry in broad_client.get_model_config("text")["input"]]
    assert names == ["text", "tokens", "lengths"]


def test_repository(client, server):
    row = {"name": "tiny", "version": "1", "state": "READY", "reason": ""}
    assert client.get_model_repository_index() == [row]
    for body in (b"", b"{}", b'{"ready": true}', b'{"ready": false}'):
        assert server.client.post("/v2/repository/index", content=body).json() == [row]
    for body in (b"{", b"[]", b'{"ready": 1}', b'{"ready": null}'):
        assert server.client.post("/v2/repository/index", content=body).status_code == 400
    assert server.client.post("/v2/repository/index", content=b" " * 100_000).status_code == 413


@pytest.mark.parametrize("binary_in", [True, False])
@pytest.mark.parametrize("binary_out", [True, False, None])
def test_infer(client, server, binary_in, binary_out):
    inputs = padded_inputs(SEQUENCES, binary=binary_in)
    outputs = None if binary_out is None else [triton.InferRequestedOutput("logits", binary_data=binary_out)]
    result = client.infer("tiny", inputs, outputs=outputs, request_id="one")
    found = result.as_numpy("logits")
    assert (found.dtype, found.shape) == (np.float32, (3, 1, 20))
    for row, sequence in zip(found, SEQUENCES, strict=True):
        np.testing.assert_allclose(row, logits_of(server, sequence), **CLOSE)
    answer = result.get_response()
    assert (answer["model_name"], answer["model_version"], answer["id"]) == ("tiny", "1", "one")
    assert ("data" in answer["outputs"][0]) == (binary_out is False)


def test_one_sequence_alone_is_bit_for_bit(client, server):
    result = client.infer("tiny", [tensor("tokens", np.array([SEQUENCES[0]]))], parameters={"positions": "all"})
    expected = logits_of(server, SEQUENCES[0], positions="all")
    np.testing.assert_array_equal(result.as_numpy("logits")[0], expected)


def test_padding_is_never_read_and_answers_are_padded_with_zeros(client):
    """The law: batch-mates and what stands beyond a length change nothing."""
    options = {"outputs": [triton.InferRequestedOutput(name) for name in ("logits", "layers.1.weights")]}
    options["parameters"] = {"positions": "all"}
    together = client.infer("tiny", padded_inputs(SEQUENCES), **options)
    for index, sequence in enumerate(SEQUENCES):
        alone = client.infer("tiny", padded_inputs([sequence]), **options)
        size = len(sequence)
        for name, inside in (("logits", np.s_[:size]), ("layers.1.weights", np.s_[:, :size, :size])):
            found = together.as_numpy(name)[index].copy()
            np.testing.assert_allclose(found[inside], alone.as_numpy(name)[0], **CLOSE)
            found[inside] = 0
            assert not found.any()


def test_outputs_as_they_were_asked_for(client, server):
    wanted = {"layers.2.weights": True, "logits": False, "layers.0.hidden": True, "layers.0.weights": False}
    outputs = [triton.InferRequestedOutput(name, binary_data=binary) for name, binary in wanted.items()]
    result = client.infer("tiny", [tensor("tokens", np.array([SEQUENCES[0]]))], outputs=outputs)
    entries = result.get_response()["outputs"]
    assert [entry["name"] for entry in entries] == list(wanted)
    assert [("data" not in entry) for entry in entries] == list(wanted.values())
    body = {"sequences": [SEQUENCES[0]], "layers": [0, 2], "quantity": "weights"}
    maps = server.ask("attention", body)["maps"]
    for layer in (0, 2):
        expected = np.array([entry["weights"] for entry in maps if entry["layer"] == layer], np.float32)
        np.testing.assert_array_equal(result.as_numpy(f"layers.{layer}.weights")[0], expected)
    np.testing.assert_array_equal(result.as_numpy("logits")[0], logits_of(server, SEQUENCES[0]))
    assert result.as_numpy("layers.0.hidden").shape == (1, 8, 16)


def test_every_output_has_the_shape_of_its_metadata(client, broad_client):
    for connected, name in [
        (client, "tiny"),
        *((broad_client, kind) for kind in ("text", "leading", "halves", "tagger")),
    ]:
        metadata = connected.get_model_metadata(name)
        specs = [*metadata["outputs"], *metadata["parameters"]["optional_outputs"]]
        outputs = [triton.InferRequestedOutput(spec["name"]) for spec in specs]
        reads = {spec["name"]: spec["shape"] for spec in metadata["inputs"]}
        if "features" in reads:
            inputs = [tensor("features", np.ones((2, 4, reads["features"][2]), np.float32))]
        else:
            inputs = padded_inputs([[1, 2, 3, 4], [5]])
        result = connected.infer(name, inputs, outputs=outputs)
        for spec in specs:
            found = result.as_numpy(spec["name"])
            assert len(found) == 2
            assert len(found.shape) == len(spec["shape"])
            assert all(want in (-1, size) for want, size in zip(spec["shape"], found.shape, strict=True)), spec
            assert np.isfinite(found).all()
            assert found.any()


@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize("model", ["text", "tagger"])
def test_texts(broad_client, broad, model, binary):
    result = broad_client.infer(model, [tensor("text", np.array(TEXTS, object), binary=binary)])
    for row, text in zip(result.as_numpy("logits"), TEXTS, strict=True):
        expected = logits_of(broad, text, model)
        np.testing.assert_allclose(row[: len(expected)], expected, **CLOSE)
        assert not row[len(expected) :].any()


@pytest.mark.parametrize("model", ["leading", "halves"])
def test_features(broad_client, broad, model):
    features = np.random.default_rng(0).normal(size=(2, 5, 3)).astype(np.float32)
    features[1, 2:] = np.nan
    inputs = [tensor("features", features), tensor("lengths", np.array([5, 2]))]
    found = broad_client.infer(model, inputs).as_numpy("logits")
    assert (found.dtype, found.ndim) == (np.float32, 2)
    for row, sequence in zip(found, (features[0], features[1, :2]), strict=True):
        tolerance = CLOSE if model == "leading" else {"rtol": 0, "atol": 1e-2}
        np.testing.assert_allclose(row, logits_of(broad, sequence.tolist(), model)[0], **tolerance)


def test_asyncio(server):
    async def talk():
        async with triton_aio.InferenceServerClient(server.url.removeprefix("http://")) as client:
            assert await client.is_server_live()
            assert await client.is_model_ready("tiny")
            assert (await client.get_model_metadata("tiny"))["name"] == "tiny"
            assert (await client.get_model_repository_index())[0]["state"] == "READY"
            inputs = padded_inputs(SEQUENCES, module=triton_aio)
            packed = {"request_compression_algorithm": "gzip", "response_compression_algorithm": "gzip"}
            results = await asyncio.gather(*(client.infer("tiny", inputs, **packed) for _ in range(8)))
            with pytest.raises(InferenceServerException, match="expected ids from 0 to 19"):
                await client.infer("tiny", [tensor("tokens", np.array([[99]]), module=triton_aio)])
            return [result.as_numpy("logits") for result in results]

    for found in asyncio.run(talk()):
        for row, sequence in zip(found, SEQUENCES, strict=True):
            np.testing.assert_allclose(row, logits_of(server, sequence), **CLOSE)


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
def test_packed_requests(client, algorithm):
    options = {"request_compression_algorithm": algorithm, "response_compression_algorithm": algorithm}
    result = client.infer("tiny", padded_inputs(SEQUENCES), **options)
    np.testing.assert_allclose(
        result.as_numpy("logits"), client.infer("tiny", padded_inputs(SEQUENCES)).as_numpy("logits"), **CLOSE
    )


def test_async_infer_of_the_sync_client(client):
    result = client.async_infer("tiny", padded_inputs(SEQUENCES)).get_result()
    assert result.as_numpy("logits").shape == (3, 1, 20)


def test_raw_bodies(server, broad):
    def infer(served, model, body):
        response = served.client.post(f"/v2/models/{model}/infer", content=body, headers={HEADER: "0"})
        assert response.status_code == 200, response.text
        size = int(response.headers[HEADER])
        (entry,) = json.loads(response.content[:size])["outputs"]
        return np.frombuffer(response.content[size:], "<f4").reshape(entry["shape"])[0]

    found = infer(server, "tiny", np.array(SEQUENCES[0], "<i8").tobytes())
    np.testing.assert_array_equal(found, logits_of(server, SEQUENCES[0]))
    np.testing.assert_array_equal(infer(broad, "text", TEXTS[1].encode()), logits_of(broad, TEXTS[1], "text"))
    features = [[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]
    found = infer(broad, "leading", np.array(features, "<f4").tobytes())
    np.testing.assert_array_equal(found, logits_of(broad, features, "leading")[0])
    for model, body in (("leading", b"1" * 13), ("leading", b""), ("text", b"\xff"), ("text", b"")):
        refused = broad.client.post(f"/v2/models/{model}/infer", content=body, headers={HEADER: "0"})
        assert refused.status_code in (400, 422), refused.text


def infer_body(**fields):
    return {"inputs": [{"name": "tokens", "datatype": "INT64", "shape": [1, 3], "data": [3, 1, 4]}], **fields}


@pytest.mark.parametrize("media_type", [None, "application/octet-stream", "application/x-www-form-urlencoded", "x"])
def test_any_media_type(server, media_type):
    headers = {} if media_type is None else {"Content-Type": media_type}
    response = server.client.post(INFER, content=json.dumps(infer_body()), headers=headers)
    assert response.status_code == 200
    assert response.headers["Content-Type"] == "application/json"


def test_parameters_nobody_knows_change_nothing(client):
    options = {"sequence_id": 7, "sequence_start": True, "priority": 3, "parameters": {"mine": "x"}}
    result = client.infer("tiny", padded_inputs(SEQUENCES), **options)
    np.testing.assert_allclose(
        result.as_numpy("logits"), client.infer("tiny", padded_inputs(SEQUENCES)).as_numpy("logits"), **CLOSE
    )


def test_versions(client):
    assert client.infer("tiny", padded_inputs(SEQUENCES), model_version="1").get_response()["model_version"] == "1"
    for version in ("2", "0", "01", "latest", "-1"):
        with pytest.raises(InferenceServerException, match="version: "):
            client.infer("tiny", padded_inputs(SEQUENCES), model_version=version)


def ask(**options):
    return lambda client: client.infer("tiny", [tensor("tokens", np.array([[1, 2]]))], **options)


FAULTS = {
    "no such model": (lambda client: client.infer("nobody", []), "404", "model: "),
    "no inputs": (lambda client: client.infer("tiny", []), "400", "inputs: tokens: missing"),
    "another type": (
        lambda client: client.infer("tiny", [tensor("tokens", np.ones((1, 2), np.float32))]),
        "400",
        r"inputs\[0\].datatype: expected INT64, got 'FP32'",
    ),
    "another shape": (
        lambda client: client.infer("tiny", [tensor("tokens", np.array([1, 2]))]),
        "400",
        r"inputs\[0\].shape: expected \[-1, -1\], .*, got \[2\]",
    ),
    "nothing": (lambda client: client.infer("tiny", [tensor("tokens", np.zeros((0, 3), int))]), "400", "shape"),
    "no steps": (lambda client: client.infer("tiny", [tensor("tokens", np.zeros((3, 0), int))]), "400", "shape"),
    "too long": (
        lambda client: client.infer("tiny", [tensor("tokens", np.ones((1, MAX_LENGTH + 1), int))]),
        "422",
        f"tokens: expected 1 to {MAX_LENGTH} steps, got {MAX_LENGTH + 1}",
    ),
    "another id": (
        lambda client: client.infer("tiny", [tensor("tokens", np.array([[1, 20]]))]),
        "422",
        r"tokens\[0\]\[1\]: expected ids from 0 to 19, got 20",
    ),
    "another output": (ask(outputs=[triton.InferRequestedOutput("probs")]), "400", r"outputs\[0\].name: "),
    "twice": (ask(outputs=[triton.InferRequestedOutput("logits")] * 2), "400", r"outputs\[1\].name: .*once"),
    "classes": (
        ask(outputs=[triton.InferRequestedOutput("logits", class_count=3)]),
        "400",
        r"outputs\[0\].parameters.classification: ",
    ),
    "positions": (ask(parameters={"positions": "first"}), "422", "parameters.positions: "),
    "timeout": (ask(timeout=-1), "422", "parameters.timeout: "),
    "too many": (
        lambda client: client.infer("tiny", [tensor("tokens", np.ones((5000, 1), int))]),
        "413",
        "tokens: expected at most 4096",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_errors_are_decoded(client, name):
    call, status, message = FAULTS[name]
    with pytest.raises(InferenceServerException, match=message) as caught:
        call(client)
    assert caught.value.status() == status


def test_what_is_too_large_is_refused_before_any_work(server):
    data = [[1] * 250] * 3
    body = infer_body(outputs=[{"name": "layers.0.weights"}])
    body["inputs"][0] |= {"shape": [3, 250], "data": data}
    response = server.client.post(INFER, json=body)
    assert response.status_code == 413
    assert response.json()["error"].startswith("outputs[0]: an answer may hold at most 65536 numbers as JSON")
    body["outputs"][0]["parameters"] = {"binary_data": True}
    assert server.client.post(INFER, json=body).status_code == 200
    for packed in (gzip.compress(b" " * 17 * 2**20), gzip.compress(b" " * 2**20) + b"x", b"no gzip"):
        response = server.client.post(INFER, content=packed, headers={"Content-Encoding": "gzip"})
        assert response.status_code == (413 if len(packed) > 5000 else 400), response.text
    response = server.client.post(INFER, content=b"", headers={"Content-Encoding": "br"})
    assert response.status_code == 415


def test_late_is_504(client, server):
    long = np.ones((2000, 64), int)
    with pytest.raises(InferenceServerException, match=r"not answered within 0\.1 ms") as caught:
        client.infer("tiny", [tensor("tokens", long)], timeout=100)
    assert caught.value.status() == "504"
    with pytest.raises(InferenceServerException, match=r"not answered within 0\.2 ms"):
        client.infer("tiny", [tensor("tokens", long)], headers={"Timeout-Ms": "0.2"})
    client.infer("tiny", [tensor("tokens", long[:1])], timeout=0)


def frame():
    tokens, lengths = pad(SEQUENCES)
    parts = [np.ascontiguousarray(array).tobytes() for array in (tokens, lengths)]
    shapes = (tokens.shape, lengths.shape)
    inputs = [
        {"name": name, "datatype": "INT64", "shape": shape, "parameters": {"binary_data_size": len(part)}}
        for name, shape, part in zip(("tokens", "lengths"), shapes, parts, strict=True)
    ]
    outputs = [{"name": "logits"}, {"name": "layers.1.weights", "parameters": {"binary_data": True}}]
    head = json.dumps({"id": "x", "inputs": inputs, "outputs": outputs, "parameters": {"positions": "all"}}).encode()
    return head, b"".join(parts)


def mutate(generator, head, tail):
    """A frame that is somehow wrong, or not; with the length of its JSON."""
    body = bytearray(head + tail)
    size = str(len(head))
    for _ in range(generator.randint(1, 4)):
        place = generator.randrange(len(body)) if body else 0
        match generator.randrange(8):
            case 0:
                body[place : place + 1] = bytes([generator.randrange(256)])
            case 1:
                del body[place : place + generator.randint(1, 40)]
            case 2:
                body[place:place] = generator.randbytes(generator.randint(1, 40))
            case 3:
                body[place:place] = body[: generator.randrange(100)]
            case 4:
                size = generator.choice(["0", "-1", "", "x", "9" * 30, "\xb2", str(len(body)), str(place)])
            case 5 | 6:
                # Numbers, where most of the meaning is.
                digits = [index for index, byte in enumerate(body[: len(head)]) if 48 <= byte <= 57]
                if digits:
                    number = generator.choice([b"0", b"-1", b"9" * 19, b"1e300", b"null", b"true", b"[]", b"2.5"])
                    at = generator.choice(digits)
                    body[at : at + 1] = number
            case 7:
                body[len(head) :] = generator.randbytes(len(body) - len(head)) if len(body) > len(head) else b""
    return bytes(body), size


def send_frames(server, seed, count):
    generator = random.Random(seed)
    head, tail = frame()
    statuses = set()
    for _ in range(count):
        body, size = mutate(generator, head, tail)
        headers = {HEADER: size.encode("latin-1")} if generator.random() < 0.9 else {}
        if generator.random() < 0.1:
            body, headers["Content-Encoding"] = zlib.compress(body)[: generator.randint(1, 10_000)], "deflate"
        response = server.client.post(INFER, content=body, headers=headers)
        assert response.status_code in (200, 400, 413, 422), (response.text, body)
        if response.status_code != 200:
            assert response.json()["errors"][0]["field"]
            assert len(response.content) < 10_000
        statuses.add(response.status_code)
    assert {200, 400, 422} <= statuses
    # The fixture looks for tracebacks in the log when all is over.
    assert server.client.get("/healthz").status_code == 200
    assert server.client.post(INFER, content=head + tail, headers={HEADER: str(len(head))}).status_code == 200


def test_wrong_frames(server):
    assert server.client.post(INFER, content=b"".join(frame()), headers={HEADER: str(len(frame()[0]))}).is_success
    send_frames(server, 1, 2000)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2, 12))
def test_more_wrong_frames(server, seed):
    send_frames(server, seed, 3000)


def test_limits_that_are_shared_name_the_tensor(make_app):
    app, _, _ = make_app(max_queue=2, max_pending_bytes=1000)

    async def conversation(client):
        for shape, positions, message in (
            ([3, 1], "last", "tokens: expected at most 2 sequences in one request, got 3"),
            ([2, 5], "all", "tokens: body, inputs, logits, queries and keys may take 1000 bytes"),
        ):
            tokens = {"name": "tokens", "datatype": "INT64", "shape": shape, "data": [1] * (shape[0] * shape[1])}
            body = {"inputs": [tokens], "parameters": {"positions": positions}}
            assert check_problem(await client.post(INFER, json=body), 413).startswith(message)
        # What is sent is no tensor yet.
        response = await client.post(INFER, content=b" " * 1001)
        assert check_problem(response, 413).startswith("body: body, inputs, logits")

    talk(app, conversation)

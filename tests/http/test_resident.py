"""Attention over HTTP from captures that stay on a GPU: the same answers, and only what is asked comes to the host.

The GPU is tests/fake_cuda.py, in this process, so that what is copied can be counted.
"""

import contextlib
import functools
import gc
import logging

import numpy as np
import pytest

from attnserve.bound import DeviceFailure
from attnserve.service.app import create_app
from attnserve.service.catalogue import Catalogue
from attnserve.service.settings import Settings
from tests.fake_cuda import FakeCuda
from tests.http.conftest import check_problem, talk

pytestmark = pytest.mark.http

QUICK = {"tuning_seconds": 0.05, "tuning_cache": "", "num_threads": 1, "kernels": "off", "export_worker": "off"}
# One model of every weighting, grouped heads, features and half precision.
MODELS = {"tiny": "bundles", "text": "breadth", "halves": "breadth"}
QUESTIONS = {
    "default": {},
    "all": {"diagnostics": "all"},
    "some": {"diagnostics": ["entropy", "received", "redundancy"], "layers": [-1], "heads": [1, 0], "queries": "::2"},
    "maps": {"quantity": "weights", "queries": [-1, 0]},
    "scores": {"quantity": "scores", "layers": [0]},
    "signed": {"quantity": "signed"},
    "weighted": {"quantity": "weighted", "top_keys": 2},
    "received": {"quantity": "received", "reduce": {"heads": "mean"}},
    "rollout": {"quantity": "rollout", "queries": "last"},
    "ablated": {"diagnostics": ["sink", "importance"], "ablate": [[0, 0]]},
    "queries and keys": {"quantity": "qk"},
}


@pytest.fixture(scope="module")
def cuda():
    with pytest.MonkeyPatch.context() as patch:
        fake = FakeCuda()
        fake.install(patch.setattr)
        # When nothing has come for a while a run gives memory back, whose logits would be counted with another's.
        patch.setattr("attnserve.service.model.SHRINK_SECONDS", 1e6)
        yield fake


@pytest.fixture(scope="module")
def start(request, cuda, tmp_path_factory):
    """An app with the models of a repository, loaded."""
    with contextlib.ExitStack() as stack:

        def make(repository, **settings):
            folder = tmp_path_factory.mktemp("service")
            places = {"checkpoints": str(folder / "checkpoints"), "database_url": f"sqlite:///{folder / 'jobs.sqlite'}"}
            catalogue = Catalogue(request.getfixturevalue(repository), Settings(**{**QUICK, **places, **settings}))
            stack.callback(catalogue.close)
            catalogue.load()
            return create_app(catalogue)

        yield make


@pytest.fixture(scope="module")
def find_apps(start):
    """Of a model, the service on the CPU, and on a GPU where everything stays."""

    @functools.cache
    def find(repository):
        return start(repository, device="cpu"), start(repository, device="cuda", gpu_weights_from=0)

    return lambda model: find(MODELS[model])


def post(app, path, document):
    """The response to a request."""
    responses = []

    async def conversation(client):
        responses.append(await client.post(path, json=document))

    talk(app, conversation)
    return responses[0]


def ask(app, model, document):
    """The answer to a question that must succeed."""
    response = post(app, f"/v1/models/{model}/attention", document)
    assert response.status_code == 200, response.text
    return response.json()


def find_residence(app, model="tiny"):
    """Where captures of a model stay."""
    return app.state.catalogue.models[model].engine.runtime.residence


def make_sequences(model, *lengths):
    random = np.random.default_rng(0)
    if model == "halves":
        return [random.normal(size=(length, 3)).tolist() for length in lengths]
    return [random.integers(0, 20, length).tolist() for length in lengths]


def assert_close(found, expected, path=""):
    """The same document, up to rounding."""
    if isinstance(expected, dict):
        assert found.keys() == expected.keys(), path
        for name in expected:
            assert_close(found[name], expected[name], f"{path}.{name}")
    elif isinstance(expected, list):
        assert len(found) == len(expected), path
        for place, one in enumerate(expected):
            assert_close(found[place], one, f"{path}[{place}]")
    elif isinstance(expected, float):
        assert found == pytest.approx(expected, rel=1e-4, abs=5e-6), path
    else:
        assert found == expected, path


@pytest.mark.parametrize("name", QUESTIONS)
@pytest.mark.parametrize("model", MODELS)
def test_answers_are_those_of_the_cpu(find_apps, model, name):
    plain, resident = find_apps(model)
    question = {"sequences": make_sequences(model, 9, 1, 30), **QUESTIONS[name]}
    assert_close(ask(resident, model, question), ask(plain, model, question))


def test_other_protocols_have_captures_too(find_apps):
    names = ["logits", "layers.0.query", "layers.1.weights", "layers.2.metric"]
    tensor = {"name": "tokens", "datatype": "INT64", "shape": [2, 5], "data": make_sequences("tiny", 10)[0]}
    document = {"inputs": [tensor], "outputs": [{"name": name} for name in names]}
    plain, resident = (post(app, "/v2/models/tiny/infer", document) for app in find_apps("tiny"))
    assert resident.status_code == 200, resident.text
    assert [output["name"] for output in resident.json()["outputs"]] == names
    assert_close(resident.json(), plain.json())


@pytest.mark.parametrize("other", ["there", "on the host"])
@pytest.mark.parametrize("quantity", ["weights", "rollout", "diagnostics"])
def test_both_sides_of_a_comparison_are_cut_alike(find_apps, other, quantity, monkeypatch):
    plain, resident = find_apps("tiny")
    sequences = make_sequences("tiny", 40, 40)
    question = {"sequences": sequences[:1], "compare": {"sequences": sequences[1:]}, "quantity": quantity}
    # A few rows each, but not as few on the host as there.
    monkeypatch.setattr("attnserve.rows.BLOCK_NUMBERS", 1)
    monkeypatch.setattr("attnserve.rows.MIN_BLOCK_ROWS", 3)
    monkeypatch.setattr("attnserve.rows.MAX_BLOCK_NUMBERS", 1000)
    if other == "on the host":
        residence = find_residence(resident)
        hold, num_held = residence.hold, []

        def hold_first(*arguments):
            num_held.append(1)
            return hold(*arguments) if len(num_held) == 1 else {}

        monkeypatch.setattr(residence, "hold", hold_first)
    assert_close(ask(resident, "tiny", question), ask(plain, "tiny", question))


def test_what_overflows_is_refused_where_it_is(find_apps):
    question = {"sequences": [[[0.5, 0.5, 0.5]], [[1e12, 0.0, 0.0]]]}
    details = [check_problem(post(app, "/v1/models/halves/attention", question), 422) for app in find_apps("halves")]
    assert details[0] == details[1]
    assert details[0].startswith("sequences[1]: ")


@pytest.fixture(scope="module")
def app(start):
    return start("bundles", device="cuda", gpu_weights_from=100_000)


def test_where_the_threshold_is_can_be_seen(app):
    seen = []

    async def conversation(client):
        seen.append((await client.get("/v1/models/tiny")).json()["gpus"])

    talk(app, conversation)
    assert seen == [{"devices": [0], "graphs": "off", "tf32": "off", "weights_from": 100_000}]


@pytest.mark.parametrize(("length", "stays"), [(64, False), (300, True)])
def test_large_questions_copy_what_they_ask_for_and_small_ones_copy_captures(app, cuda, length, stays):
    before = cuda.copied_bytes
    ask(app, "tiny", {"sequences": make_sequences("tiny", length)})
    copied = cuda.copied_bytes - before
    # Of each of three layers, of width 16, with two heads of eight channels.
    queries_and_keys, hidden = 2 * 2 * 8 * 4 * length, 16 * 4 * length
    # Nine sums of each row of a head, one of unit vectors and its count, and a byte for each capture that is finite.
    sums, units, finite = 2 * 9 * 4 * length, 16 * 4 + 8, 3
    logits = 20 * 4
    assert copied == 3 * (sums + units + finite if stays else queries_and_keys + hidden) + logits
    gc.collect()
    assert find_residence(app).num_bytes == 0


def test_captures_that_are_kept_are_kept_on_the_host(app):
    sequence = make_sequences("tiny", 300)[0]
    response = post(app, "/v1/models/tiny/captures", {"sequences": [sequence]})
    assert response.status_code == 201, response.text
    gc.collect()
    assert find_residence(app).num_bytes == 0
    seen = []

    async def conversation(client):
        seen.append(await client.get(f"/v1/captures/{response.json()['id']}/rows/0/0", params={"queries": "last"}))

    talk(app, conversation)
    assert seen[0].status_code == 200


def test_an_error_that_the_device_survives_fails_the_question_alone(app, cuda, monkeypatch, caplog):
    question = {"sequences": make_sequences("tiny", 300)}

    def fail(session, outputs):
        monkeypatch.undo()
        raise RuntimeError("CUDA failure 2: out of memory")

    monkeypatch.setattr(cuda, "distort_others", fail)
    detail = check_problem(post(app, "/v1/models/tiny/attention", question), 500)
    assert detail == "the model failed on this input; the service's log has details"
    assert "out of memory" in caplog.text
    assert ask(app, "tiny", question)


def test_where_it_is_measured_it_is_told(start, caplog):
    with caplog.at_level(logging.INFO):
        app = start("bundles", device="cuda")
    weights_from = app.state.catalogue.models["tiny"].engine.gpus.weights_from
    assert f"weights {'off' if weights_from is None else f'from {weights_from}'})" in caplog.text
    # Either is what a clock may say; both are told rightly by whether anything may stay.
    assert (find_residence(app) is None) == (weights_from is None)


@pytest.mark.parametrize("failure", [DeviceFailure, RuntimeError], ids=["weights", "pass"])
def test_a_gpu_that_fails_while_it_is_measured_is_not_used(start, monkeypatch, caplog, failure):
    def fail(*arguments, **options):
        raise failure("the device failed") from RuntimeError("CUDA failure 2: out of memory")

    monkeypatch.setattr("attnserve.service.model.measure_crossover", fail)
    app = start("bundles", device="cuda")
    assert app.state.catalogue.models["tiny"].engine.gpus.weights_from is None
    assert "attention weights are computed on the CPU, a GPU failed to" in caplog.text
    assert "out of memory" in caplog.text
    assert ask(app, "tiny", {"sequences": make_sequences("tiny", 300)})

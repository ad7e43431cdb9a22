"""Plans: what a server says of its model, and everything that is drawn for it before a run."""

import json

import numpy as np
import pytest

from attnserve.service.bench.options import LoadOptions
from attnserve.service.bench.plan import NUM_CLOSED_BODIES, draw_plan
from attnserve.service.bench.target import make_bodies, read_target

DESCRIPTION = {
    "name": "m",
    "version": 3,
    "ready": True,
    "task": "next_token",
    "limits": {"max_length": 100},
    "vocabulary_size": 10,
    "num_features": None,
}
OF_IDS = read_target(DESCRIPTION, "m")
OF_FEATURES = read_target({**DESCRIPTION, "vocabulary_size": None, "num_features": 3}, "m")


def plan(target=OF_IDS, **options):
    return draw_plan(LoadOptions(url="http://h", model="m", **options), target)


def test_what_a_load_needs_is_read():
    assert (OF_IDS.name, OF_IDS.version, OF_IDS.task) == ("m", 3, "next_token")
    assert (OF_IDS.max_length, OF_IDS.vocabulary_size, OF_IDS.num_features) == (100, 10, None)


@pytest.mark.parametrize(
    ("document", "said"),
    [
        (
            {"ready": False, "reason": "is being loaded"},
            "--model: expected a model that is ready, got m: is being loaded",
        ),
        (None, "--url: expected attnserve's description of m, "),
        ([], "--url: expected attnserve's description of m, "),
        ({}, "--url: expected attnserve's description of m, got one without 'ready'"),
        ({"ready": True, "name": "m"}, "--url: expected attnserve's description of m, got one without 'version'"),
        ({**DESCRIPTION, "limits": None}, "--url: expected attnserve's description of m, "),
        (
            {**DESCRIPTION, "vocabulary_size": None},
            "--model: expected a model that reads either ids or features, got m",
        ),
    ],
)
def test_what_is_no_model_is_named(document, said):
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        read_target(document, "m")
    assert str(caught.value).startswith(said)


def test_a_body_for_every_request():
    drawn = plan(rate=20, duration_s=3, warmup_s=1, lengths="2-5", num_sequences=3, arrivals="constant")
    assert len(drawn.arrivals_s) == len(drawn.bodies) == 80
    documents = [json.loads(body) for body in drawn.bodies]
    assert all(document.keys() == {"sequences"} for document in documents)
    lengths = [len(sequence) for document in documents for sequence in document["sequences"]]
    assert len(lengths) == 3 * 80
    assert (drawn.shortest, drawn.longest) == (min(lengths), max(lengths)) == (2, 5)
    assert drawn.mean_length == pytest.approx(sum(lengths) / len(lengths))
    ids = {step for document in documents for sequence in document["sequences"] for step in sequence}
    assert ids == set(range(10))


def test_features_are_vectors():
    sequences = json.loads(plan(OF_FEATURES, lengths="4").bodies[0])["sequences"]
    assert np.array(sequences).shape == (1, 4, 3)


def test_the_seed_decides_everything():
    assert plan(seed=1) == plan(seed=1)
    assert plan(seed=1).bodies != plan(seed=2).bodies
    assert plan(seed=1).arrivals_s != plan(seed=2).arrivals_s


def test_lengths_do_not_move_arrivals():
    assert plan(lengths="5").arrivals_s == plan(lengths="6-60", num_sequences=2).arrivals_s


def test_a_closed_loop_has_no_schedule():
    drawn = plan(num_connections=2, lengths="1")
    assert (drawn.arrivals_s, len(drawn.bodies)) == ((), NUM_CLOSED_BODIES)


def test_a_run_may_be_without_requests():
    assert plan(rate=1e-9).arrivals_s == ()


def test_memory_of_bodies_is_bounded():
    lengths = np.full((100, 1), 50)
    generator = np.random.default_rng(0)
    assert len(make_bodies(OF_IDS, lengths, generator)) == 100
    assert len(make_bodies(OF_IDS, lengths, generator, max_bytes=1000)) == 9
    assert len(make_bodies(OF_IDS, lengths, generator, max_bytes=1)) == 1

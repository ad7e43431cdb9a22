"""A scenario that cannot fail is none: each verdict with a run that breaks its law."""

import json
import subprocess
import sys
import time
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest

from attnserve.service.bench.report import Summary
from soak import damage, drain, kills, memory, overload, poison, poisoned, reload, schema, workers
from soak.connection import Question, Reply
from soak.jobs import Ended, Reader, find_leftovers


def reply(status, document=None):
    return Reply(status=status, headers={}, body=json.dumps(document or {}).encode())


def test_memory_that_grows():
    flat = memory.judge("m", 100, [200, 203, 209.9], [], 1.0)
    assert (flat.broken, flat.figures["m, growth %"]) == ([], pytest.approx(4.95))
    assert memory.judge("m", 100, [200, 203, 211], [], 1.0).broken == ["m: memory grew by 5.5 %, at most 5 % may be"]
    assert memory.judge("m", 100, [200, 200], ["3 requests failed"], 1.0).broken == ["3 requests failed"]


@pytest.fixture
def reader():
    """Two questions and their answers, of versions 3 and 4."""
    made = object.__new__(reload.Reader)
    made._logits = {b"one": [1.0, 2.0]}
    made.versions = {3, 4}
    made.seen = set()
    return made


def answered(version, logits):
    top = [{"id": index, "logit": logit} for index, logit in enumerate(logits)]
    return {"version": version, "predictions": [{"top": [top[::-1]]}]}


def test_answers_while_versions_change(reader):
    question = Question(path="/", body=b"one")
    assert reader.judge(question, reply(200, answered(4, [1.0, 2.0]))) is None
    assert reader.seen == {4}
    assert reader.judge(question, reply(503)).startswith("503")
    assert reader.judge(question, reply(200, answered(2, [1.0, 2.0]))).startswith("version 2 answered")
    assert reader.judge(question, reply(200, answered(4, [1.0, 2.1]))).startswith("expected [1.0, 2.0], got")


def test_reloads_that_leave_something_behind():
    assert reload.check_more("threads", reload.MOST_MORE) == []
    assert reload.check_more("threads", reload.MOST_MORE + 1)
    assert reload.check_seen(50, 51) == []
    assert reload.check_seen(40, 51)


STOP = {
    **{"num_answers": 10, "num_faults": 0, "faults": [], "num_refused": 8},
    **{"seconds": 1.0, "exit_code": 0, "num_left": 0},
}


@pytest.mark.parametrize(
    "fault",
    [
        {"num_faults": 1, "faults": ["reset"]},
        {"exit_code": 1},
        {"exit_code": None},
        {"num_left": 1},
        {"num_answers": 0},
    ],
)
def test_stops_that_lose_requests(fault):
    assert drain.judge([drain.Stop(**STOP)] * 2).broken == []
    assert drain.judge([drain.Stop(**STOP), drain.Stop(**STOP | fault)]).broken


def test_processes_that_are_left_are_found():
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, start_new_session=True) as left:
        assert drain.count_group(left.pid) == 1
        left.communicate(b"\n")
    assert drain.count_group(left.pid) == 0


def ask(sequences):
    return Question(path="/", body=json.dumps({"sequences": sequences}).encode())


@pytest.mark.parametrize(
    ("sequences", "status", "is_right"),
    [
        ([[1, 2]], 200, True),
        ([[1, 2]], 500, False),
        ([[1], [2, poisoned.ERROR]], 500, True),
        ([[poisoned.PANIC]], 500, True),
        ([[poisoned.PANIC]], 200, False),
        ([[poisoned.ERROR]], 503, False),
    ],
)
def test_only_culprits_fail(sequences, status, is_right):
    assert (poison.judge(ask(sequences), reply(status)) is None) == is_right


def test_poison_that_reaches_nobody():
    assert poison.check_reach(10, 14) == []
    assert poison.check_reach(0, 0)
    # As if each had been alone in its batch.
    assert poison.check_reach(10, 10)


def test_an_engine_is_poisoned():
    class Engine:
        def run(self, jobs):
            return [job.sequence for job in jobs]

    poisoned.poison(Engine)
    good, bad, worse = (SimpleNamespace(sequence=np.array([1, last])) for last in (2, poisoned.ERROR, poisoned.PANIC))
    assert Engine().run([good]) == [good.sequence]
    with pytest.raises(ValueError, match="poisoned"):
        Engine().run([good, bad])
    with pytest.raises(poisoned.Panic):
        Engine().run([worse, good])
    assert not issubclass(poisoned.Panic, Exception)


def test_counters_are_read():
    metrics = '# HELP failed_total x\nfailed_total{model="a"} 3.0\nfailed_total{model="b"} 4.0\nfailed_totals 9.0\n'
    assert poison.read_counter(metrics, "failed_total") == 7


def flood(**changed):
    fields = {
        **{"window_s": 10.0, "num_offered": 3000, "offered_per_s": 300.0, "num_answered": 950, "answered_per_s": 95.0},
        **{"num_within_deadline": 900, "goodput_per_s": 90.0, "statuses": {"200": 950, "429": 2000, "504": 50}},
        **{
            "errors": {},
            "latency_ms": {"p99": 480.0},
            "server_ms": {},
            "lag_ms": None,
            "client_cpu": 0.0,
            "faults": (),
        },
    }
    return overload.Overload(capacity_per_s=100.0, summary=Summary(**fields | changed))


def test_overload_that_is_borne():
    assert overload.judge(flood()) == []


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"goodput_per_s": 84.0}, "84.0/s in time of a capacity of 100.0/s"),
        ({"latency_ms": {"p99": 501.0}}, "p99 of the answered is 501 ms"),
        ({"latency_ms": None}, "nothing was answered"),
        ({"statuses": {"200": 950, "429": 1800, "504": 250}}, "250 of 3000 were let in and late"),
        ({"statuses": {"200": 950, "429": 2000, "500": 1}}, "'500': 1"),
        ({"errors": {"disconnect": 1}}, "'disconnect': 1"),
        ({"statuses": {"200": 3000}}, "nothing was refused"),
    ],
)
def test_overload_that_is_not(changed, words):
    (law,) = overload.judge(flood(**changed))
    assert words in law


GOOD_RUN = "Test cases:\n  1776 generated, 0 found\n\nSeed: 42\n"


def test_schemathesis_that_finds_something():
    passed = schema.judge(0, GOOD_RUN, {"200": 900, "422": 800}, 0)
    assert passed.broken == []
    assert (passed.figures["seed"], passed.figures["cases"]) == ("42", "1776")
    for case in (
        (1, GOOD_RUN, {"200": 900}, 0),
        (0, GOOD_RUN, {"200": 900, "500": 1}, 0),
        (0, GOOD_RUN, {"200": 9}, 1),
    ):
        assert schema.judge(*case).broken
    # A server on which nothing works refuses all that is wrong, too.
    assert "too few" in schema.judge(0, GOOD_RUN, {"200": 1, "503": 800}, 0).broken[0]


def test_statuses_are_counted():
    name = "inference_request_duration_seconds"
    metrics = "".join(
        f'{name}_count{{model="{model}",route="/",status="{status}"}} {number}.0\n'
        for model, status, number in (("a", 200, 3), ("b", 200, 4), ("", 404, 5))
    )
    assert schema.count_statuses(metrics + f'{name}_sum{{status="200"}} 1.0\n') == {"200": 7, "404": 5}


def ended(status="SUCCESS", **outcome):
    return Ended(status=status, worker="first", outcome=outcome)


@pytest.mark.parametrize(
    ("found", "is_right"),
    [
        (ended(state="failed", reason="config.json: width: missing"), True),
        (ended(state="failed", reason="model.safetensors: no such file"), True),
        (ended(state="succeeded"), False),
        (ended(state="failed", reason="unexpected KeyError: config.json: 'x'"), False),
        (ended(state="failed", reason="config.json: unexpected KeyError"), False),
        (ended(state="failed", reason="the export process was killed by SIGSEGV in step load"), False),
        (ended("ERROR"), False),
    ],
)
def test_damage_that_is_not_refused_in_words(found, is_right):
    assert (damage.judge(found) is None) == is_right


def test_jobs_that_are_published_twice_or_never():
    assert kills.check_count(5, 5) == []
    assert kills.check_count(4, 5)
    assert kills.check_count(6, 5)


def test_workers_of_which_one_has_done_nothing():
    assert workers.check_shared(Counter(first=1, second=9)) == []
    assert workers.check_shared(Counter(second=10))


def test_jobs_of_older_releases_that_end_without_a_name():
    assert workers.check_refused({"state": "failed", "reason": "format: this release runs 1, got 0"}) == []
    assert workers.check_refused({"state": "failed", "reason": "KeyError"})
    assert workers.check_refused({"state": "succeeded"})
    assert workers.check_refused({})


def test_half_a_bundle_is_seen(tmp_path):
    with Reader(tmp_path) as reader:
        (tmp_path / "m" / "1").mkdir(parents=True)
        end = time.monotonic() + 60
        while not reader.faults and time.monotonic() < end:
            time.sleep(0.01)
    assert "m/1/manifest.json: no such file" in reader.faults[0]


def test_what_jobs_leave_is_found(tmp_path):
    repository = tmp_path / "repository"
    for folder in ("m/1", "m/.tmp-job.01234567", ".attnserve/checkpoints/.work/job", ".attnserve/checkpoints/.workers"):
        (repository / folder).mkdir(parents=True)
    (tmp_path / "tmp" / "torch").mkdir(parents=True)
    assert len(find_leftovers(repository, tmp_path)) == 3

"""Jobs as JSON."""

from typing import get_args

import pytest

from attnserve.certificate import PRECISIONS
from attnserve.jobs import STATES, Outcome
from attnserve.service.exports.job import Job, Log, describe_job
from attnserve.service.exports.schemas import ExportJob, ExportSummary, Precision, State
from tests.fake_exports import FILES, LINES, PARITY, job_id, make_order

CREATED_MS = 1_700_000_000_123


def make_job(**fields) -> Job:
    return Job(**{"id": job_id(1), "state": "queued", "order": make_order(), "created_ms": CREATED_MS, **fields})


def log_of(*lines, is_over=False):
    return Log(lines=lines, is_over=is_over)


def test_what_was_asked_for_is_there():
    described = describe_job(
        make_job(key="ci", order=make_order(precision="float16", portable=True, top_k=5)), log_of()
    )
    assert described["model"] == "tiny"
    assert described["version"] == 2
    assert described["checkpoint"] == "mine"
    assert described["precision"] == "float16"
    assert described["options"] == {"portable": True, "top_k": 5}
    assert described["activate"] is True
    assert described["key"] == "ci"
    assert described["files"] == FILES


def test_times_are_utc():
    described = describe_job(make_job(started_ms=CREATED_MS + 1000, ended_ms=None))
    assert described["created"] == "2023-11-14T22:13:20.123Z"
    assert described["started"] == "2023-11-14T22:13:21.123Z"
    assert described["ended"] is None


def test_a_job_that_runs_says_where_it_is():
    described = describe_job(make_job(state="running", worker="w", progress=LINES[1]))
    assert (described["step"], described["progress"], described["message"]) == ("load", 0.02, "1 layer")
    assert described["worker"] == "w"
    # The log knows better: it was read later.
    described = describe_job(make_job(state="running", progress=LINES[1]), log_of(*LINES))
    assert (described["step"], described["progress"]) == ("graph", 0.05)
    assert [line["message"] for line in described["log"]] == ["2 files", "1 layer", "traced"]


def test_a_job_that_was_given_back_waits_again():
    described = describe_job(make_job(state="queued"), log_of(*LINES))
    assert described["step"] is None
    assert described["progress"] == 0.05


def test_one_that_succeeded_is_done():
    job = make_job(state="succeeded", outcome=Outcome(state="succeeded", parity=PARITY))
    described = describe_job(job, log_of(*LINES, is_over=True))
    assert (described["step"], described["progress"], described["message"]) == (None, 1.0, None)
    assert described["parity"]["logits"] == {"reference": 1e-6, "allowed": 4e-6, "measured": 2e-6}
    assert described["parity"]["reference_logits"] == 3e-6
    assert described["table"] == PARITY.table
    assert described["reason"] is None


def test_one_that_failed_says_where_and_why():
    outcome = Outcome(state="failed", step="verify", reason="not equal", report="length 1: 3.0e-01", parity=None)
    described = describe_job(make_job(state="failed", outcome=outcome), log_of(*LINES, is_over=True))
    assert (described["step"], described["reason"]) == ("verify", "not equal")
    assert described["report"] == "length 1: 3.0e-01"
    assert described["progress"] == 0.05


def test_one_that_was_cancelled_says_where():
    described = describe_job(make_job(state="cancelled"), log_of(*LINES, is_over=True))
    assert (described["step"], described["progress"], described["message"]) == ("graph", 0.05, None)


def test_what_a_newer_release_ordered_is_unknown():
    described = describe_job(make_job(order=None), log_of())
    assert described["model"] is described["files"] is described["options"] is None
    assert described["state"] == "queued"


def test_the_schema_knows_all_words():
    assert get_args(State) == STATES
    assert get_args(Precision) == PRECISIONS


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("order", [make_order(), None], ids=["known", "unknown"])
def test_the_schema_is_what_is_answered(state, order):
    outcome = Outcome(state=state, parity=PARITY) if state in ("succeeded", "failed") else None
    job = make_job(state=state, order=order, outcome=outcome, progress=LINES[0])
    whole, short = describe_job(job, log_of(*LINES)), describe_job(job)
    assert set(whole) == set(ExportJob.model_fields)
    assert set(short) == set(ExportSummary.model_fields)
    ExportJob.model_validate(whole, strict=True)
    ExportSummary.model_validate(short, strict=True)

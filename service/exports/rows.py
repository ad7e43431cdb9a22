"""Rows: what DBOS has of a workflow, and the job that it is. Another release may have written it."""

from typing import Any

from dbos import WorkflowStatus

from attnserve.jobs import ExportOrder, Outcome, Progress
from attnserve.records import RecordError, from_json
from attnserve.service.exports.job import Job

STATES = {
    "ENQUEUED": "queued",
    "DELAYED": "queued",
    "PENDING": "running",
    "SUCCESS": "succeeded",
    "ERROR": "failed",
    "MAX_RECOVERY_ATTEMPTS_EXCEEDED": "failed",
    "CANCELLED": "cancelled",
}
"""By DBOS's word. A workflow that has returned may have returned a failure."""
ACTIVE = [status for status, state in STATES.items() if state in ("queued", "running")]


def make_job(status: WorkflowStatus, progress: Progress | None) -> Job:
    """The job that a workflow is."""
    state, outcome = STATES[status.status], _read_outcome(status)
    attributes = status.attributes or {}
    return Job(
        id=status.workflow_id,
        state=state if outcome is None else outcome.state,
        order=_read_order(status),
        created_ms=status.created_at or 0,
        started_ms=status.dequeued_at,
        ended_ms=status.completed_at,
        worker=status.executor_id,
        key=status.authenticated_user or None,
        fingerprint=attributes.get("fingerprint"),
        progress=progress,
        outcome=outcome,
    )


def _read_order(status: WorkflowStatus) -> ExportOrder | None:
    """What was ordered; None of what another release has ordered in a format of its own."""
    try:
        # A text, if DBOS could not read it.
        (document,) = status.input["args"] if isinstance(status.input, dict) else ()
        return from_json(ExportOrder, document)
    except (RecordError, ValueError):
        return None


def _read_outcome(status: WorkflowStatus) -> Outcome | None:
    if STATES[status.status] == "failed":
        # Failures of checkpoints are outcomes: this one is the worker's.
        return Outcome(state="failed", reason=f"the worker failed: {status.error or status.status}")
    if status.status != "SUCCESS":
        return None
    try:
        return from_json(Outcome, status.output)
    except RecordError as fault:
        return Outcome(state="failed", reason=f"the outcome that the worker reported cannot be read: {fault}")


def read_progress(document: Any) -> Progress:
    """A line of a job's log."""
    try:
        return from_json(Progress, document)
    except RecordError:
        # Of a newer release. That something was said is known all the same.
        return Progress(step="", fraction=0.0, message=str(document)[:1000], at="")

"""The workflow: four durable steps, each done once, or again by whoever goes on with the job.

    fetch     the files that were pinned, into the job's work folder
    build     load, graph, golden and verify, in a process of its own; leaves a proven bundle beside its place
    publish   one rename
    activate  `aliases.json`, where that was asked for

What is wrong with a checkpoint or an order is an outcome, never an exception. What a step returned is in the database,
and is what it returns again: none is done twice unless a worker died in it.
"""

import datetime
import logging
import os
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from dbos import DBOS, WorkflowSerializationFormat
from dbos import error as dbos_error

from attnserve.bundle import MANIFEST_FILE, hash_file
from attnserve.jobs import JOB_FORMAT, LOG, PROGRESS, STEPS, WORKFLOW, ExportOrder, Outcome, Progress, Verdict
from attnserve.publish import flush
from attnserve.records import RecordError, from_json, to_json
from attnserve.worker.build import Builder
from attnserve.worker.places import JOB, Places
from attnserve.worker.steps import Check, StepError, activate_version, fetch, publish_bundle
from attnserve.worker.sweep import ENDED

log = logging.getLogger(__name__)

# A job is taken up again this often after workers died with it, before it is held to be what they died of.
MAX_RECOVERIES = 50
# How often the database is asked whether a job is still this worker's.
OWNER_S = 1.0


class Abandoned(BaseException):
    """A job is to be left alone: this worker stops, it was cancelled, or another worker has it.

    No `Exception`, so that DBOS records nothing of it.
    """

    def __init__(self, reason: str, *, is_over: bool = False) -> None:
        super().__init__(reason)
        self.is_over = is_over
        """Whether nobody will go on with it, so that what it left may go."""


class Exporter:
    """Runs jobs.

    Args:
        name: of the worker.
        places: where everything is.
        builder: of the bundles.
    """

    def __init__(self, *, name: str, places: Places, builder: Builder) -> None:
        self._name = name
        self._places = places
        self._builder = builder
        self._stopping = threading.Event()
        self.running: set[str] = set()
        """Jobs that threads of this process are at."""

    def register(self) -> None:
        """Tell DBOS of the workflow, before it is launched."""

        def export(document: dict[str, Any]) -> dict[str, Any]:
            outcome: dict[str, Any] = to_json(self.run(str(DBOS.workflow_id), document))
            return outcome

        DBOS.workflow(
            name=WORKFLOW,
            max_recovery_attempts=MAX_RECOVERIES,
            serialization_type=WorkflowSerializationFormat.PORTABLE,
        )(export)

    def stop(self) -> None:
        """Let go of the job at hand, and take up no other."""
        self._stopping.set()

    def run(self, job: str, document: dict[str, Any]) -> Outcome:
        """One job; `document` is its order as JSON.

        Raises:
            Abandoned: it is to be left alone.
        """
        if re.fullmatch(JOB, job) is None:
            # It would be the name of folders, which are removed afterwards.
            return _fail("fetch", f"id: expected at most 64 letters, digits, '_' and '-', got {job[:80]!r}")
        with self._at(job):
            outcome = self._export(job, document)
            self._places.clear(job)
            log.info("export %s: %s%s", job, outcome.state, f" in {outcome.step}" if outcome.step else "")
            return outcome

    def _export(self, job: str, document: dict[str, Any]) -> Outcome:
        try:
            order = read_order(document)
        except StepError as error:
            return _fail("fetch", str(error))
        check = self._watch_owner(job)

        def do_fetch() -> None:
            self._tell("fetch", ", ".join(order.files))
            fetch(order, job, self._places, check)

        def do_publish() -> None:
            self._tell("publish", f"{order.model}/{order.version}")
            publish_bundle(order, attempt, manifest_sha256, self._places)

        def do_activate() -> None:
            self._tell("activate", "the model's active version" if order.activate else "not asked for")
            activate_version(order, self._places)

        log.info("export %s: %s to %s/%d", job, order.checkpoint, order.model, order.version)
        if (reason := self._step("fetch", check, do_fetch)) is not None:
            return _fail("fetch", reason)
        built = DBOS.run_step({"name": "build"}, self._build, order, job, check)
        verdict = from_json(Verdict, built["verdict"])
        if verdict.outcome.state != "succeeded":
            return verdict.outcome
        attempt = self._places.version(order).with_name(built["attempt"])
        manifest_sha256 = str(verdict.manifest_sha256)
        for step, act in (("publish", do_publish), ("activate", do_activate)):
            if (reason := self._step(step, check, act)) is not None:
                return _fail(step, reason, verdict.outcome)
        return verdict.outcome

    def _step(self, name: str, check: Check, act: Callable[[], None]) -> str | None:
        """A durable step; returns why it failed, if it did."""

        def attempt() -> str | None:
            # Whoever had the job before may have been suspended between two steps, and must not undo those of another.
            check()
            try:
                act()
            except StepError as error:
                return self._shorten(str(error))
            except Exception as error:
                log.exception("export %s: %s", DBOS.workflow_id, name)
                return self._shorten(f"unexpected {type(error).__name__}: {error}")
            return None

        return DBOS.run_step({"name": name}, attempt)

    def _build(self, order: ExportOrder, job: str, check: Check) -> dict[str, Any]:
        check()
        for path in self._places.find_attempts(job):
            shutil.rmtree(path, ignore_errors=True)
        attempt = self._places.new_attempt(order, job)
        verdict, step = None, "load"

        def tell(begun: str, message: str) -> None:
            nonlocal step
            step = begun
            self._tell(begun, message)

        try:
            attempt.mkdir(parents=True)
            verdict = self._builder.build(order, self._places.work(job), attempt, tell, check)
            verdict = check_verdict(verdict, order, attempt)
            # Before the queue has it on disk that there is a bundle.
            for path in attempt.rglob("*"):
                flush(path)
        except Exception as error:
            log.exception("export %s: %s", job, step)
            verdict = Verdict(outcome=_fail(step, self._shorten(f"unexpected {type(error).__name__}: {error}")))
        finally:
            if verdict is None or verdict.outcome.state != "succeeded":
                shutil.rmtree(attempt, ignore_errors=True)
                with suppress(OSError):
                    attempt.parent.rmdir()
        return {"verdict": to_json(verdict), "attempt": attempt.name}

    def _tell(self, step: str, message: str) -> None:
        """Publish where the job is; only its owner can."""
        log.info("export %s: %s: %s", DBOS.workflow_id, step, message)
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        progress = to_json(Progress(step=step, fraction=STEPS[step], message=message, at=now))
        DBOS.set_event(PROGRESS, progress)
        DBOS.write_stream(LOG, progress)

    def _watch_owner(self, job: str) -> Check:
        asked = -OWNER_S

        def check() -> None:
            nonlocal asked
            if self._stopping.is_set():
                raise Abandoned("this worker stops")
            if time.monotonic() - asked < OWNER_S:
                return
            status = DBOS.get_workflow_status(job)
            if status is None or status.status in ENDED:
                raise Abandoned("it was cancelled", is_over=True)
            if status.status != "PENDING" or status.executor_id != self._name:
                raise Abandoned("another worker has it")
            asked = time.monotonic()

        return check

    @contextmanager
    def _at(self, job: str) -> Iterator[None]:
        self.running.add(job)
        try:
            yield
        except Abandoned as error:
            log.info("export %s: left alone: %s", job, error)
            if error.is_over:
                self._places.clear(job)
            raise
        except (dbos_error.DBOSWorkflowCancelledError, dbos_error.DBOSWorkflowConflictIDError) as error:
            # DBOS would have this thread wait for what becomes of the job, and then call that an error. What a
            # cancelled job left is swept.
            log.info("export %s: left alone: %s", job, error)
            raise Abandoned(str(error)) from None
        finally:
            self.running.discard(job)

    def _shorten(self, reason: str) -> str:
        """Where this machine keeps what is nobody's business."""
        for folder in (self._places.repository, self._places.checkpoints):
            reason = reason.replace(f"{folder}{os.sep}", "")
        return reason


def read_order(document: Any) -> ExportOrder:
    """The order of a job.

    Raises:
        StepError: it is of another release's format, or no order.
    """
    found = document.get("format") if isinstance(document, dict) else None
    if found != JOB_FORMAT:
        raise StepError(f"format: this release runs jobs of format {JOB_FORMAT}, got {found!r:.40}; ask for it again")
    try:
        return from_json(ExportOrder, document)
    except RecordError as error:
        raise StepError(str(error)) from None


def check_verdict(verdict: Verdict, order: ExportOrder, attempt: Path) -> Verdict:
    """Hold what a process says it has built to what is there, and to what was asked for."""
    if verdict.outcome.state != "succeeded":
        return verdict
    if verdict.checkpoint_sha256 != order.files:
        return Verdict(outcome=_fail("verify", "files: expected a bundle of those that were asked for, got another"))
    if hash_file(attempt / MANIFEST_FILE) != verdict.manifest_sha256:
        return Verdict(outcome=_fail("verify", "manifest.json: expected the one that was verified, got another"))
    return verdict


def _fail(step: str, reason: str, so_far: Outcome | None = None) -> Outcome:
    return Outcome(state="failed", step=step, reason=reason, parity=None if so_far is None else so_far.parity)

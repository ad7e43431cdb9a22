"""The queue of export jobs, which is DBOS: a library over tables that the workers and every replica share.

Imported when exports are used: it takes half a second, and needs the extra `jobs`. Nothing here runs a job.
"""

import logging
import os
import threading
import urllib.parse
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from dbos import (
    DBOS,
    DBOSClient,
    DBOSPortableJSONSerializer,
    EnqueueOptions,
    WorkflowSerializationFormat,
    WorkflowStatus,
    error,
)

from attnserve.jobs import APPLICATION, JOB_FORMAT, LOG, PROGRESS, QUEUE, WORKFLOW, ExportOrder, Progress
from attnserve.records import to_json
from attnserve.service.exports.job import Job, Log, Place, QueueDown, Taken
from attnserve.service.exports.rows import ACTIVE, STATES, make_job, read_progress
from attnserve.unpickling import forbid_unpickling

NUM_CONNECTIONS = 4
# A database that does not answer for so long is down.
CONNECT_SECONDS = 5
# SQLSTATE of a table, or the schema around it, that is not there.
NO_TABLES = ("42P01", "3F000")

log = logging.getLogger(__name__)


class DBOSQueue:
    """Export jobs in a database. A file is made when somebody asks first; a server's tables are a worker's to make.

    Args:
        url: of the database, SQLite or PostgreSQL.
    """

    def __init__(self, url: str) -> None:
        forbid_unpickling()
        # At level info it tells of every start and setting.
        logging.getLogger("dbos").setLevel(max(logging.WARNING, logging.getLogger().getEffectiveLevel()))
        self._url = sa.make_url(url)
        self._engine = _open_engine(self._url)
        self._client = DBOSClient(
            system_database_engine=self._engine,
            serializer=DBOSPortableJSONSerializer(),
            application_name=APPLICATION,
            lazy=True,
            retry_connection_errors=False,
        )
        self._table = sa.table(
            "workflow_status",
            *(sa.column(name) for name in ("workflow_uuid", "created_at", "name", "status", "application_name")),
            schema=None if _is_file(self._url) else "dbos",
        )
        self._is_prepared = False
        self._is_known_down = False
        self._noting = threading.Lock()

    def add(self, job_id: str, order: ExportOrder, *, key: str | None, fingerprint: str) -> None:
        """Queue a job.

        Raises:
            Taken: there is one of that id, or one under way to that version of that model.
            QueueDown: the database does not answer.
        """
        options: EnqueueOptions = {
            "workflow_name": WORKFLOW,
            "queue_name": QUEUE,
            "workflow_id": job_id,
            "workflow_id_reuse_policy": "reject",
            "deduplication_id": f"{order.model}/{order.version}",
            "app_version": str(JOB_FORMAT),
            "serialization_type": WorkflowSerializationFormat.PORTABLE,
            "attributes": {"fingerprint": fingerprint},
        }
        if key is not None:
            options["authenticated_user"] = key
        with self._asking():
            try:
                self._client.enqueue(options, to_json(order))
            except (error.DBOSQueueDeduplicatedError, error.DBOSWorkflowIDInUseError) as taken:
                raise Taken(str(taken)) from None

    def find(self, job_id: str) -> Job | None:
        """A job by its id.

        Raises:
            QueueDown: the database does not answer.
        """
        with self._asking():
            found = self._read([job_id])
            return found[0] if found else None

    def find_active(self) -> list[Job]:
        """Those that are queued or running, in no order.

        Raises:
            QueueDown: the database does not answer.
        """
        with self._asking():
            return [
                make_job(status, None)
                for status in self._client.list_workflows(name=WORKFLOW, status=ACTIVE, load_output=False)
            ]

    def list_jobs(self, states: Collection[str], after: Place | None, limit: int) -> list[Job]:
        """The next jobs, newest first. Some of another state may be among them.

        Raises:
            QueueDown: the database does not answer.
        """
        statuses = {status for status, state in STATES.items() if state in states}
        # Failures of a checkpoint are outcomes of workflows that succeeded.
        statuses |= {"SUCCESS"} if "failed" in states else set()
        table = self._table.c
        # DBOS's own listing has no second key, so jobs of one millisecond could be listed twice, or never.
        statement = (
            sa.select(table.workflow_uuid)
            .where(table.name == WORKFLOW, table.application_name == APPLICATION, table.status.in_(statuses))
            .order_by(table.created_at.desc(), table.workflow_uuid.desc())
            .limit(limit)
        )
        if after is not None:
            is_same = table.created_at == after.created_ms
            is_after = sa.and_(is_same, table.workflow_uuid < after.id)
            statement = statement.where(sa.or_(table.created_at < after.created_ms, is_after))
        with self._asking():
            with self._engine.connect() as connection:
                ids = list(connection.execute(statement).scalars())
            return self._read(ids)

    def read_log(self, job_id: str, start: int) -> Log:
        """What a job has said, from line `start` on.

        Raises:
            QueueDown: the database does not answer.
        """
        lines: list[Progress] = []
        with self._asking():
            try:
                for line in self._client.read_stream(job_id, LOG, offset=start, timeout_seconds=0):
                    lines.append(read_progress(line))
            except error.DBOSStreamTimeoutError:
                return Log(lines=tuple(lines), is_over=False)
            except error.DBOSNonExistentWorkflowError:
                pass
        return Log(lines=tuple(lines), is_over=True)

    def cancel(self, job_id: str) -> None:
        """Have a job stopped; nothing happens to one that is over.

        Raises:
            QueueDown: the database does not answer.
        """
        with self._asking():
            self._client.cancel_workflow(job_id)

    def close(self) -> None:
        """Close all connections."""
        self._client.destroy()
        self._engine.dispose()

    def _prepare(self) -> None:
        """Make a file and its tables, as the first worker would: who asks first need not wait for one to start."""
        if _is_file(self._url) and not self._is_prepared:
            Path(str(self._url.database)).parent.mkdir(parents=True, exist_ok=True)
            DBOS.migrate(self._url.render_as_string())
            self._is_prepared = True

    def _read(self, ids: list[str]) -> list[Job]:
        """Jobs in the order of their ids; those that are none are left out."""
        if not ids:
            return []
        listed = self._client.list_workflows(workflow_ids=ids, name=WORKFLOW, application_name=APPLICATION)
        found = {status.workflow_id: status for status in listed}
        return [make_job(found[job_id], self._read_progress(found[job_id])) for job_id in ids if job_id in found]

    def _read_progress(self, status: WorkflowStatus) -> Progress | None:
        """Where a running job is. Of others nobody asks, and there are many."""
        if status.status != "PENDING":
            return None
        event = self._client.get_event(status.workflow_id, PROGRESS, timeout_seconds=0)
        return None if event is None else read_progress(event)

    @contextmanager
    def _asking(self) -> Iterator[None]:
        """Turn whatever the database raises into `QueueDown`; the log has the details, once."""
        try:
            self._prepare()
            yield
        except (sa.exc.SQLAlchemyError, error.DBOSQueryTimeoutError) as failure:
            # Of the driver, which does not quote what was asked.
            cause = getattr(failure, "orig", None) or failure
            self._note(f"{type(cause).__name__}: {cause}")
            if getattr(cause, "sqlstate", None) in NO_TABLES:
                raise QueueDown("nobody has prepared the database of export jobs yet") from None
            raise QueueDown("the database of export jobs does not answer") from None
        except OSError as failure:
            self._note(str(failure))
            raise QueueDown("the database of export jobs cannot be made") from None
        except ValueError as failure:
            self._note(str(failure))
            raise QueueDown("the database of export jobs holds what no worker has written") from None
        else:
            self._note(None)

    def _note(self, failure: str | None) -> None:
        """Log that the database is down, and that it is back; not every request that finds it so."""
        with self._noting:
            was_down, self._is_known_down = self._is_known_down, failure is not None
        if failure is not None and not was_down:
            log.warning("the database of export jobs: %s", failure)
        elif failure is None and was_down:
            log.info("the database of export jobs answers again")


def _open_engine(url: sa.URL) -> sa.Engine:
    """Connections as DBOS itself would make them, but not waiting for longer than a request does."""
    if _is_file(url):
        # One that somebody has taken away is not made again, without tables.
        database = f"file:{urllib.parse.quote(os.path.abspath(str(url.database)))}"
        url = url.set(database=database, query={"mode": "rw", "uri": "true"})
        # Writers take the file before they look at it, so that none finds it changed afterwards.
        arguments: dict[str, Any] = {"isolation_level": "IMMEDIATE", "timeout": CONNECT_SECONDS}
    else:
        url = url.set(drivername="postgresql+psycopg")
        arguments = {
            "application_name": APPLICATION,
            "connect_timeout": CONNECT_SECONDS,
            "tcp_user_timeout": 1000 * CONNECT_SECONDS,
        }
    return sa.create_engine(
        url,
        connect_args=arguments,
        pool_size=NUM_CONNECTIONS,
        max_overflow=0,
        pool_timeout=CONNECT_SECONDS,
        pool_pre_ping=True,
    )


def _is_file(url: sa.URL) -> bool:
    return url.get_backend_name() == "sqlite"

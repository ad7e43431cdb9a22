"""`Worker`: DBOS around the exporter, a lease, and rounds in which it looks after jobs whose workers are gone."""

import logging
import os
import threading
import time
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import sqlalchemy as sa
from dbos import DBOS, DBOSConfig, DBOSPortableJSONSerializer

from attnserve.jobs import APPLICATION, JOB_FORMAT, QUEUE, WORKFLOW
from attnserve.unpickling import forbid_unpickling
from attnserve.worker.build import Builder
from attnserve.worker.database import ACTIVE, QUIET, schema_of, take_over
from attnserve.worker.leases import BEAT_S, PATIENCE_S, Leases, Watch
from attnserve.worker.orphans import Held, find_orphans
from attnserve.worker.places import Places
from attnserve.worker.sweep import sweep
from attnserve.worker.workflow import Exporter

log = logging.getLogger(__name__)

# Less than the 10 s after which Docker and the service that has started it kill a worker.
STOP_S = 8.0
POOL_SIZE = 8


@dataclass(frozen=True, kw_only=True)
class Rhythm:
    """How often a worker does what."""

    poll_s: float = 2.0
    """Look for jobs."""
    beat_s: float = BEAT_S
    """Renew its lease, and look after others'."""
    patience_s: float = PATIENCE_S
    """How long another's lease may stand still."""
    sweep_s: float = 60.0
    """Remove what jobs have left."""


RHYTHM = Rhythm()


class Worker:
    """Takes up one job at a time until it is told to stop.

    Args:
        engine: of the database that holds the jobs (`open_database`).
        url: of the same.
        name: its own among all workers of the database.
        places: where everything is.
        builder: of the bundles.
        rhythm: how often it does what.
        alive_file: touched after every round that went well.
    """

    def __init__(
        self,
        *,
        engine: sa.Engine,
        url: str,
        name: str,
        places: Places,
        builder: Builder,
        rhythm: Rhythm = RHYTHM,
        alive_file: Path | None = None,
    ) -> None:
        self._engine = engine
        self._url = url
        self._name = name
        self._places = places
        self._rhythm = rhythm
        self._alive_file = alive_file
        self._leases = Leases(engine, name=name, format=JOB_FORMAT, schema=schema_of(engine))
        self._watch = Watch(patience_s=rhythm.patience_s)
        self._exporter = Exporter(name=name, places=places, builder=builder)
        self._swept_at = -rhythm.sweep_s
        self._lost: dict[str, float] = {}
        self._stopping = threading.Event()
        self._rounds = threading.Thread(target=self._go_round, name="rounds", daemon=True)

    def stop(self) -> None:
        """Tell it to stop; may be called from a signal handler."""
        self._stopping.set()

    def run(self) -> None:
        """Work until told to stop, then give back the job at hand."""
        self._leases.create()
        # Before anything can be this worker's: jobs of a worker without a lease are anybody's.
        self._leases.renew()
        self._launch()
        log.info("worker %s: ready", self._name)
        # In threads: DBOS waits for a database that is away as long as it takes, and being told to stop does not.
        self._rounds.start()
        self._stopping.wait()
        ending = threading.Thread(target=self._end, name="end", daemon=True)
        ending.start()
        ending.join(STOP_S)
        if ending.is_alive():
            log.warning("worker %s: the database does not answer; ends without giving back its job", self._name)
            # Threads that wait for the database would keep the process.
            os._exit(0)
        log.info("worker %s: stopped", self._name)

    def _launch(self) -> None:
        config = DBOSConfig(
            name=APPLICATION,
            system_database_url=self._url,
            sys_db_pool_size=POOL_SIZE,
            # Releases that understand the same orders are one version, whatever else changed.
            application_version=str(JOB_FORMAT),
            executor_id=self._name,
            serializer=DBOSPortableJSONSerializer(),
            run_migrations=False,
            log_level=QUIET,
        )
        forbid_unpickling()
        DBOS(config=config)
        self._exporter.register()
        DBOS.listen_queues([QUEUE])
        DBOS.launch()
        DBOS.register_queue(QUEUE, worker_concurrency=1, polling_interval_sec=self._rhythm.poll_s)

    def _go_round(self) -> None:
        while not self._stopping.is_set():
            try:
                self._leases.renew()
                self._adopt()
                self._sweep()
                if self._alive_file is not None:
                    self._alive_file.touch()
            except (sa.exc.SQLAlchemyError, OSError) as error:
                log.warning("worker %s: cannot look after jobs now: %s", self._name, str(error).splitlines()[0])
            except Exception:
                # A worker that does not look after others, or renew its lease, still does its own jobs.
                log.exception("worker %s: cannot look after jobs", self._name)
            self._stopping.wait(self._rhythm.beat_s)

    def _adopt(self) -> None:
        """Take over jobs that nobody alive goes on with: whoever is first gets each, since DBOS hands it out once."""
        leases = self._leases.read()
        alive = self._watch.look(leases, time.monotonic())
        active = find_active()
        orphans = find_orphans(active, [one for one in leases if alive[one.name]], format=JOB_FORMAT)
        if orphans.outdated:
            log.info("worker %s: takes over from an older release: %s", self._name, ", ".join(sorted(orphans.outdated)))
            take_over(self._engine, orphans.outdated, str(JOB_FORMAT))
        dead = set(orphans.workers)
        if self._has_lost_one(active):
            dead.add(self._name)
        if dead:
            log.info("worker %s: adopts the jobs of %s", self._name, ", ".join(sorted(dead)))
            DBOS._recover_pending_workflows(sorted(dead))
        for lease in leases:
            if not alive[lease.name]:
                self._leases.release(lease)

    def _has_lost_one(self, active: Collection[Held]) -> bool:
        """Whether there is a job of this worker's that no thread of it is at: one that ended with the database away."""
        now = time.monotonic()
        idle = {job.id for job in active if job.worker == self._name} - self._exporter.running
        self._lost = {job: self._lost.get(job, now) for job in idle}
        # All of a worker's jobs are recovered, or none.
        is_idle = not self._exporter.running
        return is_idle and any(now - since > self._rhythm.patience_s for since in self._lost.values())

    def _sweep(self) -> None:
        if time.monotonic() - self._swept_at >= self._rhythm.sweep_s:
            for job in sweep(self._places, find_states, now=time.time()):
                log.info("export %s: swept", job)
            self._swept_at = time.monotonic()

    def _end(self) -> None:
        self._exporter.stop()
        while self._exporter.running:
            time.sleep(0.02)
        # A round at its end would renew the lease.
        self._rounds.join()
        DBOS.destroy(destroy_registry=True)
        # Without a lease, what this worker was at is anybody's; it has it back if it comes first.
        self._leases.release()
        self._engine.dispose()


def find_active() -> list[Held]:
    """Jobs that have not ended."""
    statuses = DBOS.list_workflows(name=WORKFLOW, status=list(ACTIVE), load_input=False, load_output=False)
    return [
        Held(
            id=status.workflow_id,
            version=status.app_version,
            worker=status.executor_id if status.status == "PENDING" else None,
        )
        for status in statuses
    ]


def find_states(jobs: Collection[str]) -> dict[str, str]:
    """DBOS's states of jobs, of those it knows."""
    statuses = DBOS.list_workflows(workflow_ids=list(jobs), load_input=False, load_output=False)
    return {status.workflow_id: status.status for status in statuses}

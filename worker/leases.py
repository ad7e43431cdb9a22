"""Leases: who is alive, by a small table beside DBOS's own.

DBOS gives the jobs of a worker back to a worker of the same name only. So that another may have them, each worker
counts up in its row, and one whose count has stood still for `PATIENCE_S` is dead. The watcher's own clock measures
this: clocks need not agree, and a watcher that was suspended itself looks before it judges.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import sqlalchemy as sa

BEAT_S = 5.0
PATIENCE_S = 30.0

TABLE = "attnserve_workers"


@dataclass(frozen=True, kw_only=True)
class Lease:
    """What a worker says of itself."""

    name: str
    format: int
    """`attnserve.jobs.JOB_FORMAT` of its release."""
    beats: int
    """Never less than before, by one start of the worker."""


class Leases:
    """The table.

    Args:
        engine: of the database that holds the jobs.
        name: of this worker.
        format: of its orders.
        schema: in which DBOS's tables are.
    """

    def __init__(self, engine: sa.Engine, *, name: str, format: int, schema: str | None = None) -> None:
        self._engine = engine
        self._name = name
        self._format = format
        self._table = sa.Table(
            TABLE,
            sa.MetaData(schema=schema),
            sa.Column("name", sa.Text, primary_key=True),
            sa.Column("format", sa.Integer, nullable=False),
            sa.Column("beats", sa.BigInteger, nullable=False),
        )

    def create(self) -> None:
        """Make the table if it is not there."""
        statement = sa.schema.CreateTable(self._table, if_not_exists=True)
        try:
            with self._engine.begin() as connection:
                connection.execute(statement)
        except (sa.exc.IntegrityError, sa.exc.ProgrammingError):
            # PostgreSQL, where looking and making are two things: another worker has made it in this moment.
            with self._engine.begin() as connection:
                connection.execute(statement)

    def renew(self) -> None:
        """Count up; a row that others have removed comes back."""
        mine = self._table.c.name == self._name
        values = {"format": self._format, "beats": self._table.c.beats + 1}
        with self._engine.begin() as connection:
            if connection.execute(sa.update(self._table).where(mine).values(values)).rowcount == 0:
                first = {"name": self._name, "format": self._format, "beats": 1}
                connection.execute(sa.insert(self._table).values(first))

    def release(self, lease: Lease | None = None) -> None:
        """Remove the row of this worker, or that of a dead one if it is still as it was seen."""
        gone = self._table.c.name == self._name
        if lease is not None:
            gone = (self._table.c.name == lease.name) & (self._table.c.beats == lease.beats)
        with self._engine.begin() as connection:
            connection.execute(sa.delete(self._table).where(gone))

    def read(self) -> list[Lease]:
        """All rows."""
        with self._engine.connect() as connection:
            rows = connection.execute(sa.select(self._table)).all()
        return [Lease(name=row.name, format=row.format, beats=row.beats) for row in rows]


class Watch:
    """Tells the living from the dead."""

    def __init__(self, *, patience_s: float = PATIENCE_S) -> None:
        self._patience_s = patience_s
        self._seen: dict[str, tuple[int, float]] = {}

    def look(self, leases: Iterable[Lease], now: float) -> Mapping[str, bool]:
        """Whether each worker is alive.

        Args:
            leases: as just read.
            now: seconds of a clock that is always the same.
        """
        before, self._seen = self._seen, {}
        for lease in leases:
            beats, since = before.get(lease.name, (None, now))
            self._seen[lease.name] = (lease.beats, since if lease.beats == beats else now)
        return {name: now - since <= self._patience_s for name, (_, since) in self._seen.items()}

"""The database that holds the jobs: DBOS's tables, and beside them who is alive."""

import logging
from collections.abc import Collection
from pathlib import Path

import sqlalchemy as sa
from dbos import DBOS

from attnserve.flags import spell

# Where DBOS puts its tables in PostgreSQL; SQLite has no schemas.
SCHEMA = "dbos"
CONNECT_S, SQLITE_PATIENCE_S = 10, 30
# How DBOS speaks of itself: at `INFO` it tells of every migration, and where to buy its console.
QUIET = "WARNING"
ACTIVE = ("DELAYED", "ENQUEUED", "PENDING")


class DatabaseError(ValueError):
    """The database cannot be used; the message names the setting and holds no password."""


def open_database(url: str) -> sa.Engine:
    """Connect, and make sure that the tables of the queue are there as this release wants them.

    Raises:
        DatabaseError: it cannot be reached, made or written to.
    """
    # With a handler there already, DBOS adds none of its own, and what it has to say comes out as the rest does.
    logger = logging.getLogger("dbos")
    logger.addHandler(logging.NullHandler())
    logger.setLevel(QUIET)
    try:
        parsed = sa.make_url(url)
    except sa.exc.ArgumentError:
        raise DatabaseError(f"{spell('database_url')}: expected a database URL, got something else") from None
    try:
        if parsed.get_backend_name() == "sqlite":
            Path(parsed.database or "").parent.mkdir(parents=True, exist_ok=True)
            engine = sa.create_engine(parsed, connect_args={"timeout": SQLITE_PATIENCE_S})
        else:
            # Two statements at a time at most.
            reach = {"connect_timeout": CONNECT_S}
            driver = parsed.set(drivername="postgresql+psycopg")
            engine = sa.create_engine(driver, pool_size=2, pool_pre_ping=True, connect_args=reach)
        # By hand first: DBOS goes on for minutes trying to reach a server that is not there.
        engine.connect().close()
        DBOS.migrate(url)
    except (sa.exc.SQLAlchemyError, OSError) as error:
        reason = str(getattr(error, "orig", None) or error).strip().splitlines()[0]
        shown = parsed.render_as_string(hide_password=True)
        raise DatabaseError(f"{spell('database_url')}: {shown} cannot be used: {reason}") from None
    return engine


def take_over(engine: sa.Engine, jobs: Collection[str], version: str) -> None:
    """Make jobs of an older release those of this one. DBOS hands out jobs of its own application version only.

    Its public way, to cancel and to rewind, would show the job as cancelled in between, and leave it so if this worker
    died there.
    """
    status = sa.table(
        "workflow_status",
        sa.column("workflow_uuid"),
        sa.column("status"),
        sa.column("application_version"),
        schema=schema_of(engine),
    )
    changed = sa.update(status).where(status.c.workflow_uuid.in_(jobs), status.c.status.in_(ACTIVE))
    with engine.begin() as connection:
        connection.execute(changed.values(application_version=version))


def schema_of(engine: sa.Engine) -> str | None:
    """Where DBOS's tables are."""
    return SCHEMA if engine.dialect.name == "postgresql" else None

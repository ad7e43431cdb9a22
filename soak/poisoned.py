"""The usual server, whose engines raise when a sequence holds a marker: `python -m soak.poisoned serve REPOSITORY`."""

from collections.abc import Sequence

from attnserve.cli import main
from attnserve.service.engine import Engine
from attnserve.service.job import Answer, Job

# Ids of nt-expressive.
ERROR, PANIC = 6, 7


class Panic(BaseException):
    """As the exceptions of Rust libraries are: none that `except Exception` catches."""


def poison(engine: type[Engine]) -> None:
    """Let every engine raise when a sequence holds a marker."""
    run = engine.run

    def run_unless_poisoned(self: Engine, jobs: Sequence[Job]) -> list[Answer]:
        for job in jobs:
            if PANIC in job.sequence:
                raise Panic("poisoned")
            if ERROR in job.sequence:
                raise ValueError("poisoned")
        return run(self, jobs)

    engine.run = run_unless_poisoned  # type: ignore[method-assign]


if __name__ == "__main__":
    poison(Engine)
    raise SystemExit(main())

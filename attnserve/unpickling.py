"""Unpickling, which runs whatever the pickle says: DBOS does it with any row that claims to be one. Not here."""

from typing import Any, NoReturn


def forbid_unpickling() -> None:
    """Have DBOS refuse pickles, in this process, from now on.

    A serializer of our own is not enough: each row of the database says how it was written, and DBOS reads it that way.
    Whoever can write to the database could run code in every service and worker.
    """
    from dbos import _serialization

    def refuse(_: Any, __: str) -> NoReturn:
        raise ValueError("expected JSON, got a pickle, which is never loaded")

    _serialization.DefaultSerializer.deserialize = refuse  # type: ignore[method-assign, assignment]

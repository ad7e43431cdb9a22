"""Logs are one line per record, whatever is in it."""

import json
import logging
import sys

import pytest

from attnserve.logs import JsonFormatter


def record(message: str, *arguments: object, **extra: object) -> logging.LogRecord:
    made = logging.getLogger("attnserve.somewhere").makeRecord(
        "attnserve.somewhere", logging.WARNING, __file__, 1, message, arguments, None, extra=extra
    )
    made.created = 1_700_000_000.0625
    return made


def test_a_record_is_one_json_object():
    line = JsonFormatter().format(record("%d of\n%s", 3, "four", model="nt", ms=1.5))
    assert "\n" not in line
    assert json.loads(line) == {
        "time": "2023-11-14T22:13:20.062Z",
        "level": "warning",
        "logger": "attnserve.somewhere",
        "message": "3 of\nfour",
        "model": "nt",
        "ms": 1.5,
    }


def test_a_traceback_stands_beside_the_message():
    failed = record("failed")
    try:
        raise KeyError("missing")
    except KeyError:
        failed.exc_info = sys.exc_info()
    document = json.loads(JsonFormatter().format(failed))
    assert document["message"] == "failed"
    assert document["traceback"].endswith("KeyError: 'missing'")


@pytest.mark.parametrize("value", [object(), {1, 2}, float("nan")], ids=["an object", "a set", "NaN"])
def test_what_json_has_no_word_for_is_still_a_line(value):
    assert "value" in json.loads(JsonFormatter().format(record("odd", value=value)))

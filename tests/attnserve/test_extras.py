"""Which extras are here, found without importing anything."""

import sys
import tomllib
from pathlib import Path

from attnserve.extras import EXTRA_OF, find_missing

PROJECT = tomllib.loads((Path(__file__).resolve().parents[2] / "pyproject.toml").read_text("utf-8"))


def test_every_extra_of_the_package_is_known():
    declared = set(PROJECT["project"]["optional-dependencies"])
    assert set(EXTRA_OF.values()) == declared - {"gpu", "dev"}


def test_missing_modules_are_named_by_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "dbos", None)
    monkeypatch.setattr("attnserve.extras.EXTRA_OF", {"dbos": "jobs", "json": "jobs", "no_such_module": "other"})
    assert find_missing() == {"jobs": ("dbos",), "other": ("no_such_module",)}


def test_nothing_is_imported(monkeypatch):
    monkeypatch.delitem(sys.modules, "antigravity", raising=False)
    monkeypatch.setattr("attnserve.extras.EXTRA_OF", {"antigravity": "jobs"})
    assert find_missing() == {"jobs": ()}
    assert "antigravity" not in sys.modules

"""Settings of the worker: their page, and what is said of their values."""

import argparse
from pathlib import Path

import pytest

from attnserve.flags import add_flags, read_flags, settings_table
from attnserve.worker.settings import SECRET, WorkerSettings

PAGE = Path(__file__).resolve().parents[2] / "docs" / "worker.md"


@pytest.fixture(autouse=True)
def nobodys_environment(monkeypatch):
    for name in WorkerSettings.model_fields:
        monkeypatch.delenv(f"ATTNSERVE_{name.upper()}", raising=False)


def parse(*arguments: str) -> WorkerSettings:
    parser = argparse.ArgumentParser()
    add_flags(parser, WorkerSettings)
    return read_flags(parser.parse_args(arguments), WorkerSettings, secret=SECRET)


def test_the_page_has_every_setting():
    page = PAGE.read_text("utf-8")
    assert page.split("<!-- settings -->\n")[1].split("<!-- /settings -->")[0] == settings_table(WorkerSettings)


@pytest.mark.parametrize(
    ("name", "right", "wrong"),
    [
        (
            "database_url",
            ["", "sqlite:////tmp/a.sqlite", "postgresql://u:p@h/d", "postgres://h/d"],
            ["mysql://h/d", "x"],
        ),
        ("checkpoints", ["", "/uploads"], []),
        ("name", ["", "a", "gpu-1.b_c"], ["-a", "a b", "a/b", "x" * 64]),
        ("alive_file", ["", "/tmp/alive"], []),
        ("max_export_seconds", ["1", "604800"], ["0", "604801", "1.5", ""]),
        ("max_export_bytes", ["0", "1000"], ["-1", "1k", ""]),
        ("log_format", ["text", "json"], ["xml"]),
        ("log_level", ["debug", "info", "warning", "error"], ["INFO"]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_flag_and_variable_take_the_same(name, right, wrong, monkeypatch):
    flag, variable = "--" + name.replace("_", "-"), f"ATTNSERVE_{name.upper()}"
    for text in right:
        monkeypatch.setenv(variable, text)
        assert str(getattr(parse(), name)) == text
        monkeypatch.delenv(variable)
        assert str(getattr(parse(f"{flag}={text}"), name)) == text
    for text in wrong:
        with pytest.raises(ValueError, match=rf"^{flag} \({variable}\): "):
            parse(f"{flag}={text}")


def test_a_password_is_in_no_message():
    with pytest.raises(ValueError, match=r"^--database-url") as refused:
        parse("--database-url", "mysql://user:geheim@host/db")
    assert "geheim" not in str(refused.value)

"""Every setting: its flag, its environment variable, its default, its bounds and its page."""

import argparse
import dataclasses
import json
import re
from pathlib import Path

import pytest

from attnserve.cli import main
from attnserve.flags import flag_of, settings_table
from attnserve.service.configuration import SECRET, add_arguments, read_settings, spell_out
from attnserve.service.cost import Cost
from attnserve.service.settings import Settings

PAGE = Path(__file__).resolve().parents[2] / "docs" / "settings.md"

COST = dict.fromkeys((field.name for field in dataclasses.fields(Cost)), 0.5) | {"pads": False}
COSTS = json.dumps({"nt": COST})

DIGITS = "1f" * 32
# A right value other than the default, as text, and wrong ones.
VALUES = {
    "host": ("0.0.0.0", [""]),
    "port": ("9000", ["-1", "65536", "http", "80.5", ""]),
    "keys_file": ("keys.yaml", []),
    "keys": (
        f'[{{"name": "ci", "sha256": "{DIGITS}", "scopes": ["predict"]}}]',
        ["ci", "[1]", f"[{{name: ci, sha256: {DIGITS}}}]", f"[{{name: ci, sha256: '{DIGITS}f', scopes: []}}]", "{"],
    ),
    "allow_anonymous": ("true", ["maybe", "2", ""]),
    "device": ("cpu", ["gpu", "CUDA", ""]),
    "kernels": ("/opt/kernels.so", [""]),
    "num_threads": ("3", ["-1", "1025", "all"]),
    "engines": ("2", ["0", "65", "all"]),
    "gpus": ("1,0", ["", "0,0", "-1", "64", "0,", "all", "0.5"]),
    "gpu_memory_bytes": ("1000000", ["-1", "1G"]),
    "gpu_arena": ("as-requested", ["kSameAsRequested", ""]),
    "cuda_graphs": ("16", ["-1", "1025", "some"]),
    "tf32_error": ("0.01", ["-1", "0.2", "nan", "some"]),
    "gpu_weights_from": ("100000", ["-2", "1.5", "some"]),
    "poll_seconds": ("0.5", ["-1", "3601", "nan", "often"]),
    "max_wait_ms": ("1.5", ["-1", "10001", "nan", "inf", "soon"]),
    "timeout_ms": ("250.5", ["-1", "86400001", "nan", "inf", "soon"]),
    "max_batch_ms": ("5.5", ["0", "-1", "60001", "nan"]),
    "max_queue": ("7", ["0", "-1", "1e3", "many"]),
    "max_batch_bytes": ("1000000", ["-1", "1G"]),
    "max_pending_bytes": ("1000000", ["-1", "1G"]),
    "max_body_bytes": ("2048", ["1023", "-1", "1M"]),
    "max_response_bytes": ("2048", ["1023", "x"]),
    "capture_bytes": ("1000000", ["-1", "1G"]),
    "capture_seconds": ("60.5", ["0.5", "604801", "nan", "soon"]),
    "captures": ('{"nt": "maps"}', ["all", "{"]),
    "max_encoding_queue": ("3", ["0", "-1", "1e3"]),
    "drain_delay_ms": ("50.5", ["-1", "600001", "nan"]),
    "max_drain_seconds": ("5", ["0", "3601", "0.5"]),
    "tuning_seconds": ("0.5", ["0", "-1", "601", "nan"]),
    "tuning_cache": ("/var/cache", []),
    "tuning": (COSTS, ["x", "{"]),
    "checkpoints": ("/var/checkpoints", []),
    "max_checkpoint_bytes": ("4096", ["1023", "-1", "1G"]),
    "checkpoint_paths": ("/data/a:/data/b", ["data", "~/data"]),
    "database_url": ("postgresql://me:secret@host/jobs", ["jobs.sqlite", "mysql://me:hidden@host/jobs"]),
    "database_password_file": ("/run/secrets/password", []),
    "export_worker": ("off", ["true", "yes", ""]),
    "otlp_endpoint": (
        "http://collector:4318",
        ["collector:4318", "ftp://c", "http://", "http://me:hidden@c", "http://c?k=v"],
    ),
    "trace_ratio": ("0.25", ["-0.1", "1.1", "nan", "all"]),
    "sample_heads": ("0.01", ["-0.1", "1.1", "nan", "all"]),
    "sample_heads_length": ("64", ["1", "-1", "0.5"]),
    "log_format": ("json", ["JSON", "xml", ""]),
    "log_level": ("debug", ["DEBUG", "trace", ""]),
}


@pytest.fixture(autouse=True)
def nobodys_environment(monkeypatch):
    for name in VALUES:
        monkeypatch.delenv(f"ATTNSERVE_{name.upper()}", raising=False)


def parse(*arguments: str) -> Settings:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return read_settings(parser.parse_args(spell_out(arguments)))


def test_every_setting_is_tested():
    assert set(VALUES) == set(Settings.model_fields)


def test_defaults():
    assert parse() == read_settings() == Settings()
    assert Settings().host == "127.0.0.1"


@pytest.mark.parametrize("name", VALUES)
def test_every_setting_says_what_it_does(name):
    description = Settings.model_fields[name].description
    assert description
    assert description.endswith(".")
    (row,) = [row for row in settings_table(Settings).splitlines() if row.startswith(f"| `{flag_of(name)}` |")]
    cells = [cell.strip() for cell in row.strip("|").split(" | ")]
    assert all(cells)
    flag, variable, _, _, meaning = cells
    assert (flag, variable) == (f"`--{name.replace('_', '-')}`", f"`ATTNSERVE_{name.upper()}`")
    assert meaning == description


@pytest.mark.parametrize("name", VALUES)
def test_flag_over_environment_over_default(name, monkeypatch):
    text, _ = VALUES[name]
    default = getattr(Settings(), name)
    by_flag = getattr(parse(flag_of(name), text), name)
    if name == "tuning":
        assert by_flag == {"nt": Cost(**COST)}
    elif name == "captures":
        assert by_flag == {"nt": "maps"}
    elif name == "gpus":
        assert by_flag == (1, 0)
    elif name == "checkpoint_paths":
        assert by_flag == ("/data/a", "/data/b")
    else:
        assert name == "keys" or str(by_flag).lower() == text
    assert type(by_flag) is type(default)
    assert by_flag != default
    monkeypatch.setenv(f"ATTNSERVE_{name.upper()}", text)
    assert getattr(parse(), name) == by_flag
    as_text = "0" if name == "gpus" else "" if default in ((), {}) else str(default)
    assert getattr(parse(flag_of(name), as_text), name) == default


@pytest.mark.parametrize(
    ("costs", "message"),
    [
        ({}, r": nt\.seconds_per_run: missing$"),
        ({**COST, "seconds_per_run": "soon"}, r": nt\.seconds_per_run: expected float, got str 'soon'$"),
        ({**COST, "seconds_per_run": -1}, r"nt\.seconds_per_run: expected a number >= 0"),
        ({**COST, "bytes_per_cell": float("nan")}, r"nt\.bytes_per_cell: expected a number >= 0"),
        ({**COST, "bytes_per_row": float("inf")}, r"nt\.bytes_per_row: expected a number >= 0"),
        ([], r": nt: expected an object, got list"),
    ],
)
def test_costs_that_are_none(costs, message, monkeypatch):
    text = json.dumps({"nt": costs})
    with pytest.raises(ValueError, match=rf"^--tuning \(ATTNSERVE_TUNING\).*{message}"):
        parse("--tuning", text)
    monkeypatch.setenv("ATTNSERVE_TUNING", text)
    with pytest.raises(ValueError, match=message):
        parse()


@pytest.mark.parametrize(("name", "wrong"), [(name, wrong) for name, (_, bad) in VALUES.items() for wrong in bad])
def test_a_wrong_value_names_its_setting(name, wrong, monkeypatch):
    variable = f"ATTNSERVE_{name.upper()}"
    # One line: setting, what was expected, what came; of secrets nothing.
    came = ".*(got|missing).*" if name in SECRET else f".+, got {re.escape(repr(wrong))}"
    message = rf"^{flag_of(name)} \({variable}\): (?!.*({DIGITS[:8]}|hidden)){came}$"
    with pytest.raises(ValueError, match=message):
        parse(f"{flag_of(name)}={wrong}")
    monkeypatch.setenv(variable, wrong)
    with pytest.raises(ValueError, match=message):
        parse()


def test_a_wrong_value_ends_the_command(tmp_path, capsys):
    assert main(["serve", str(tmp_path), "--max-queue", "-1"]) == 1
    expected = "attnserve: --max-queue (ATTNSERVE_MAX_QUEUE): input should be greater than or equal to 1, got '-1'\n"
    assert capsys.readouterr().err == expected


def test_an_unknown_flag_ends_the_command(tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["serve", str(tmp_path), "--max-cue", "1"])
    assert "--max-cue" in capsys.readouterr().err


def test_help_lists_every_setting(capsys):
    with pytest.raises(SystemExit):
        main(["serve", "--help"])
    text = capsys.readouterr().out
    for name in VALUES:
        assert flag_of(name) in text


def test_the_table_of_settings_is_the_one_the_code_prints():
    page = PAGE.read_text("utf-8")
    assert page.split("<!-- settings -->\n")[1].split("<!-- /settings -->")[0] == settings_table(Settings)

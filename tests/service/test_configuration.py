"""Settings from a file, and what is shown of them."""

import argparse
import logging
import re
from pathlib import Path

import pytest

from attnserve.cli import COMMANDS, main
from attnserve.service import server
from attnserve.service.configuration import add_arguments, describe_settings, read_settings, spell_out
from attnserve.service.settings import Settings

PAGE = Path(__file__).resolve().parents[2] / "docs" / "settings.md"
DIGITS = "1f" * 32


@pytest.fixture(autouse=True)
def nobodys_environment(monkeypatch):
    for name in ("config", *Settings.model_fields):
        monkeypatch.delenv(f"ATTNSERVE_{name.upper()}", raising=False)


@pytest.fixture
def write(tmp_path):
    """Writes a settings file; returns its path."""

    def write(text: str) -> str:
        path = tmp_path / "attnserve.yaml"
        path.write_text(text, "utf-8")
        return str(path)

    return write


def parse(*arguments: str) -> Settings:
    parser = argparse.ArgumentParser()
    parser.add_argument("repository", nargs="?")
    add_arguments(parser)
    return read_settings(parser.parse_args(spell_out(arguments)))


def test_flag_over_environment_over_file_over_default(write, monkeypatch):
    path = write("port: 1\nmax_queue: 1\ntimeout_ms: 1\n")
    monkeypatch.setenv("ATTNSERVE_PORT", "2")
    monkeypatch.setenv("ATTNSERVE_MAX_QUEUE", "2")
    found = parse("--config", path, "--port", "3")
    assert (found.port, found.max_queue, found.timeout_ms) == (3, 2, 1.0)
    assert found.max_wait_ms == Settings().max_wait_ms
    # What is given wins even where it is the default.
    assert parse("--config", path, "--timeout-ms", "0").timeout_ms == 0
    monkeypatch.setenv("ATTNSERVE_TIMEOUT_MS", "0")
    assert parse("--config", path).timeout_ms == 0


def test_the_environment_names_a_file_and_a_flag_another(write, tmp_path, monkeypatch):
    monkeypatch.setenv("ATTNSERVE_CONFIG", write("port: 1"))
    assert parse().port == 1
    other = tmp_path / "other.yaml"
    other.write_text("port: 2")
    assert parse("--config", str(other)).port == 2


@pytest.mark.parametrize("text", ["", "# nothing yet\n", "{}"])
def test_a_file_may_say_nothing(write, text):
    assert parse("--config", write(text)) == Settings()


def test_json_is_a_settings_file_too(write):
    assert parse("--config", write('{\n\t"port": 1\n}')).port == 1


def test_a_file_has_keys_as_a_list(write):
    text = f'keys:\n- {{name: ci, sha256: "{DIGITS}", scopes: [predict]}}\n'
    (key,) = parse("--config", write(text)).keys
    assert (key.name, key.digest.hex()) == ("ci", DIGITS)


def test_a_file_has_folders_as_a_list(write):
    assert parse("--config", write("checkpoint_paths: [/data/a, /data/b]")).checkpoint_paths == ("/data/a", "/data/b")
    assert parse("--config", write("checkpoint_paths: /data/a")).checkpoint_paths == ("/data/a",)


WRONG = {
    "max_cue: 1": "max_cue: expected the name of a setting, such as max_queue",
    "repository: models": "repository: expected the name of a setting",
    "port: 65536": "port: input should be less than or equal to 65535, got 65536",
    'port: "80"': "port: input should be a valid integer, got '80'",
    # YAML has yes and no, and they are no numbers.
    "num_threads: yes": "num_threads: input should be a valid integer, got True",
    "allow_anonymous: 1": "allow_anonymous: input should be a valid boolean, got 1",
    "host:": "host: input should be a valid string, got None",
    "device: gpu": "device: input should be 'auto', 'cpu' or 'cuda', got 'gpu'",
    "checkpoint_paths: [/data, b]": "checkpoint_paths: expected absolute paths, got 'b'",
    "checkpoint_paths: [1]": "checkpoint_paths: expected folders, got list",
    "checkpoint_paths: {}": "checkpoint_paths: expected folders, got dict",
    "keys: [{name: ci}]": "keys: entry 1, sha256: missing; expected name, sha256, scopes",
    "port: 1\nhost: localhost\nport: 2": "expected each name once, got one again at line 3 column 1",
    "port: [1": "expected YAML or JSON, got something else at line 1 column 9",
    "- port": "expected settings as `name: value`, got something else",
    "port": "expected settings as `name: value`, got something else",
    "port: !!python/name:os.system": "expected YAML or JSON, got something else at line 1 column 7",
}


@pytest.mark.parametrize("text", WRONG)
def test_what_is_wrong_is_named_with_its_file(write, text, monkeypatch):
    path = write(text)
    # Whether or not anybody would have heeded it.
    monkeypatch.setenv("ATTNSERVE_PORT", "2")
    with pytest.raises(ValueError, match=f"^{re.escape(f'{path}: {WRONG[text]}')}$"):
        parse("--config", path)


def test_a_file_that_cannot_be_read_is_named(tmp_path, monkeypatch, capsys):
    missing = tmp_path / "missing.yaml"
    message = re.escape(f"--config (ATTNSERVE_CONFIG): expected a file, got {missing}: No such file or directory")
    monkeypatch.setenv("ATTNSERVE_CONFIG", str(missing))
    with pytest.raises(ValueError, match=message):
        parse()
    assert main(["serve", str(tmp_path)]) == 1
    assert capsys.readouterr().err.count("\n") == 1
    missing.write_bytes(b"\xff")
    with pytest.raises(ValueError, match="expected UTF-8, got something else"):
        parse()


@pytest.mark.parametrize(
    ("arguments", "allows"),
    [
        ([], False),
        (["--allow-anonymous"], True),
        (["--allow-anonymous", "models"], True),
        (["--allow-anonymous", "--port", "1", "models"], True),
        (["--allow-anonymous", "false", "models"], False),
        (["--allow-anonymous=false"], False),
        (["--allow-anonymous", "TRUE"], True),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_yes_or_no_may_stand_alone(arguments, allows):
    assert parse(*arguments).allow_anonymous is allows
    assert COMMANDS["serve"].spell_out(["serve", *arguments]) == ["serve", *spell_out(arguments)]


def test_the_example_of_the_page_is_read(write):
    page = PAGE.read_text("utf-8")
    (example,) = re.findall(r"^```yaml\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    found = parse("--config", write(example))
    changed = {name for name in Settings.model_fields if getattr(found, name) != getattr(Settings(), name)}
    assert changed == found.model_fields_set
    assert len(changed) > 4


def test_every_setting_is_shown_once_without_its_secrets(tmp_path, monkeypatch, caplog):
    class Enough(Exception):
        pass

    def stop(*_, **__):
        raise Enough

    monkeypatch.setattr(server, "Catalogue", stop)
    monkeypatch.setattr(server, "set_up_logs", lambda *_: None)
    entries = f'[{{"name": "ci", "sha256": "{DIGITS}", "scopes": ["predict"]}}]'
    with caplog.at_level(logging.INFO), pytest.raises(Enough):
        main(["serve", str(tmp_path), "--keys", entries, "--keys-file", "keys.yaml", "--max-queue", "7"])
    (record,) = (record for record in caplog.records if hasattr(record, "settings"))
    assert set(record.settings) == set(Settings.model_fields)
    assert "max_queue=7" in record.getMessage()
    assert "keys=['ci']" in record.getMessage()
    assert DIGITS[:8] not in f"{record.getMessage()} {record.settings}"


def test_help_and_repr_show_no_hash(monkeypatch, capsys):
    monkeypatch.setenv("ATTNSERVE_KEYS", f'[{{"name": "ci", "sha256": "{DIGITS}", "scopes": []}}]')
    with pytest.raises(SystemExit):
        main(["serve", "--help"])
    settings = parse()
    shown = capsys.readouterr().out + repr(settings) + str(describe_settings(settings))
    assert settings.keys[0].digest == bytes.fromhex(DIGITS)
    for secret in (DIGITS[:8], repr(settings.keys[0].digest)[2:10]):
        assert secret not in shown

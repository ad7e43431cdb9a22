"""The keyring follows its file, and survives what happens to it."""

import logging
import os

import pytest

from attnserve.service.keyring import CHECK_SECONDS, Keyring
from attnserve.service.keys import make_secret, parse_keys, write_entry

SECRETS = {name: make_secret() for name in ("one", "two", "three")}


def lines(*names):
    return "".join(write_entry(name, SECRETS[name], []) + "\n" for name in names)


class Clock:
    """Time, on the test's word."""

    def __init__(self):
        self.seconds = 0.0

    def __call__(self):
        return self.seconds


class File:
    """A keys file that is never written twice in the same moment."""

    def __init__(self, path):
        self.path = path
        self.writes = 0

    def write(self, text):
        self.path.write_text(text)
        self.touch()

    def touch(self):
        self.writes += 1
        os.utime(self.path, (self.writes, self.writes))


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def file(tmp_path):
    made = File(tmp_path / "keys.yaml")
    made.write(lines("one"))
    return made


@pytest.fixture
def keyring(file, clock):
    return Keyring((), file.path, clock)


def known(keyring):
    return {name for name, secret in SECRETS.items() if keyring.find(secret) is not None}


def errors(caplog):
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR]


def test_a_file_that_changes_is_read_again(file, clock, keyring, caplog):
    assert known(keyring) == {"one"}
    file.write(lines("one", "two"))
    clock.seconds += CHECK_SECONDS
    with caplog.at_level(logging.INFO):
        assert known(keyring) == {"one", "two"}
    (record,) = caplog.records
    assert record.getMessage() == "keys were read again: one, two"
    file.write(lines("two"))
    clock.seconds += CHECK_SECONDS
    assert known(keyring) == {"two"}


def test_it_is_looked_at_once_a_second(file, clock, keyring, monkeypatch):
    looks = []
    look = keyring._look
    monkeypatch.setattr(keyring, "_look", lambda: looks.append(1) or look())
    file.write(lines("two"))
    for _ in range(100):
        clock.seconds += CHECK_SECONDS / 101
        assert keyring.find(SECRETS["two"]) is None
    assert not looks
    clock.seconds = CHECK_SECONDS
    assert [keyring.find(SECRETS["two"]).name for _ in range(100)] == ["two"] * 100
    assert len(looks) == 1


def test_one_that_did_not_change_is_not_read(clock, keyring, monkeypatch):
    monkeypatch.setattr(keyring, "_read", lambda: pytest.fail("read"))
    clock.seconds += CHECK_SECONDS
    assert known(keyring) == {"one"}


def test_a_file_that_takes_its_place_is_read(file, clock, keyring):
    # As secrets of Kubernetes do, with the time of the old one.
    other = file.path.with_name("other")
    other.write_text(lines("two"))
    status = file.path.stat()
    os.utime(other, ns=(status.st_atime_ns, status.st_mtime_ns))
    other.replace(file.path)
    clock.seconds += CHECK_SECONDS
    assert known(keyring) == {"two"}


BROKEN = {
    "empty": ("", "got nothing"),
    "half": (f"{lines('one')}- {{name: two, sha", "expected YAML or JSON"),
    "wrong scope": (lines("two").replace("[]", "[everything]"), r"entry 1 \(two\), scopes: .* 'everything' in it"),
    "a name twice": (lines("one") + write_entry("one", SECRETS["two"], []), r"entry 2 \(one\), name: "),
    "no entries": ("keys: none", "expected a list"),
}


@pytest.mark.parametrize(("text", "message"), BROKEN.values(), ids=BROKEN)
def test_a_broken_file_changes_nothing_and_is_an_error_once(file, clock, keyring, caplog, text, message):
    file.write(text)
    for _ in range(5):
        clock.seconds += CHECK_SECONDS
        assert known(keyring) == {"one"}
    (error,) = errors(caplog)
    assert error.startswith(f"keys_file: {file.path}: ")
    assert error.endswith("; the keys from before stay in force")
    with pytest.raises(ValueError, match=message):
        Keyring((), file.path)
    # Another slip is another line; the right file ends it.
    file.touch()
    clock.seconds += CHECK_SECONDS
    assert known(keyring) == {"one"}
    assert len(errors(caplog)) == 2
    file.write(lines("three"))
    clock.seconds += CHECK_SECONDS
    assert known(keyring) == {"three"}
    assert len(errors(caplog)) == 2
    assert not [secret for secret in SECRETS.values() if secret in caplog.text]


def test_a_file_that_is_gone_changes_nothing_either(file, clock, keyring, caplog):
    file.path.unlink()
    for _ in range(3):
        clock.seconds += CHECK_SECONDS
        assert known(keyring) == {"one"}
    assert errors(caplog) == [
        f"keys_file: expected a file, got {file.path}: No such file or directory; the keys from before stay in force"
    ]
    file.write(lines("two"))
    clock.seconds += CHECK_SECONDS
    assert known(keyring) == {"two"}


def test_at_the_start_a_missing_file_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"^keys_file: expected a file, got .*: No such file or directory$"):
        Keyring((), tmp_path / "keys.yaml")
    (tmp_path / "keys.yaml").write_bytes(b"\xff")
    with pytest.raises(ValueError, match=r"^keys_file: .*: expected UTF-8, got something else$"):
        Keyring((), tmp_path / "keys.yaml")


def test_keys_of_the_settings_and_of_the_file_go_together(file, clock):
    keyring = Keyring(parse_keys(lines("two")), file.path, clock)
    assert known(keyring) == {"one", "two"}
    assert [key.name for key in keyring.keys] == ["two", "one"]
    with pytest.raises(ValueError, match=r"keys_file: .*: entry 2 \(one\), name: expected each name once"):
        Keyring(parse_keys(lines("one")), file.path, clock)


def test_keys_of_the_settings_need_no_file(clock):
    keyring = Keyring(parse_keys(lines("one")), "", clock)
    clock.seconds += CHECK_SECONDS
    assert known(keyring) == {"one"}

"""`attnserve key`: a key on stdout, its hash in a line or a file."""

import stat

import pytest

from attnserve.cli import main
from attnserve.service.keys import PREFIX, find_key, parse_keys


def make(capsys, *arguments):
    """The key and what was said beside it; of a command that must succeed."""
    assert main(["key", *arguments]) == 0
    shown = capsys.readouterr()
    secret = shown.out.removesuffix("\n")
    assert secret.startswith(PREFIX)
    assert "\n" not in secret
    assert secret not in shown.err
    return secret, shown.err


def test_the_key_goes_to_stdout_and_the_line_to_stderr(capsys):
    secret, line = make(capsys, "ci", "--scopes", "attention,predict")
    (key,) = parse_keys(line)
    assert (key.name, key.scopes) == ("ci", {"predict", "attention"})
    assert find_key([key], secret) is key


def test_no_scope_is_the_default(capsys):
    _, line = make(capsys, "prometheus")
    assert parse_keys(line)[0].scopes == frozenset()


def test_a_file_is_made_for_its_owner_and_added_to(tmp_path, capsys):
    path = tmp_path / "keys.yaml"
    first, said = make(capsys, "first", "--scopes", "predict", "--file", str(path))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert said == f"attnserve: the hash of first is in {path}; the key is shown only here\n"
    # What stands there stays, comments and modes and all.
    path.write_text("# ours\n" + path.read_text().rstrip("\n"))
    path.chmod(0o640)
    second, _ = make(capsys, "second", "--file", str(path))
    text = path.read_text()
    assert text.startswith("# ours\n")
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    keys = parse_keys(text)
    assert [find_key(keys, secret).name for secret in (first, second)] == ["first", "second"]
    assert not [secret for secret in (first, second) if secret in text]


@pytest.mark.parametrize("text", ["", "# none yet\n"])
def test_a_file_without_keys_gets_its_first(tmp_path, capsys, text):
    path = tmp_path / "keys.yaml"
    path.write_text(text)
    make(capsys, "first", "--file", str(path))
    assert path.read_text().startswith(text)
    assert len(parse_keys(path.read_text())) == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["a b"], "NAME: expected 1 to 64 letters"),
        (["ci", "--scopes", "predict,attend"], "--scopes: expected a list of predict, attention, admin, got 'attend'"),
        (["ci", "--file", "{folder}/none/keys.yaml"], "--file: expected a file that can be written, got "),
        (["ci", "--file", "{folder}"], "--file: expected a file that can be written, got "),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_what_cannot_be_made_is_one_line_and_no_key(tmp_path, capsys, arguments, message):
    assert main(["key", *(argument.format(folder=tmp_path) for argument in arguments)]) == 1
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith(f"attnserve: {message}")
    assert shown.err.count("\n") == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('- {name: ci, sha256: "%s", scopes: []}\n' % ("1f" * 32), "entry 2 (ci), name: expected each name once"),
        ("- {name: ops}\n", "entry 1, sha256: missing"),
        ("name: ops\n", "expected a list of entries"),
        ("- [", "expected YAML or JSON"),
        ("[]", "expected YAML with a line per key, got JSON"),
        ("\udcff", "expected UTF-8"),
    ],
)
def test_a_file_that_is_wrong_stays_as_it_was(tmp_path, capsys, text, message):
    path = tmp_path / "keys.yaml"
    path.write_text(text, "utf-8", "surrogateescape")
    before = path.read_bytes()
    assert main(["key", "ci", "--file", str(path)]) == 1
    shown = capsys.readouterr()
    assert shown.out == ""
    assert f"--file: {path}: {message}" in shown.err
    assert path.read_bytes() == before

"""`attnserve push`: afterwards a service has what the folder has, and nothing was sent that it had already."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from attnserve import push
from attnserve.cli import main
from attnserve.service.app import create_app
from attnserve.service.catalogue import Catalogue
from attnserve.service.keys import hash_secret, make_secret
from attnserve.service.settings import Settings
from tests.conftest import free_port

pytestmark = pytest.mark.http

FILES = {"config.json": "{}", "model.safetensors": "weights" * 1000, "tokenizer.json": "words", "card.json": "[]"}


@pytest.fixture(autouse=True)
def nobodys_environment(monkeypatch):
    for name in ("ATTNSERVE_URL", "ATTNSERVE_API_KEY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def folder(tmp_path) -> Path:
    folder = tmp_path / "mine"
    folder.mkdir()
    for file, content in FILES.items():
        (folder / file).write_text(content)
    (folder / "notes.txt").write_text("not for others")
    return folder


@pytest.fixture
def serve(serve_app, tmp_path):
    """Starts a service; returns its app and URL."""

    def serve(**settings):
        (tmp_path / "repository").mkdir()
        app = create_app(Catalogue(tmp_path / "repository", Settings(**settings)))
        return app, serve_app(app)

    return serve


def stored_in(app, name: str = "mine") -> dict[str, str]:
    folder = app.state.uploads.checkpoints.folder / name
    return {path.name: path.read_text() for path in folder.iterdir()}


def test_a_checkpoint_is_pushed(folder, serve, capsys):
    app, url = serve()
    assert main(["push", str(folder), "--url", url]) == 0
    assert stored_in(app) == FILES
    shown = capsys.readouterr()
    assert shown.out.splitlines() == [
        "uploaded   config.json                    2 bytes",
        "uploaded   model.safetensors          7,000 bytes",
        "uploaded   tokenizer.json                 5 bytes",
        "uploaded   card.json                      2 bytes",
        f"mine is at {url}/v1/checkpoints/mine",
    ]
    # A bar is for terminals.
    assert shown.err == ""


def test_only_what_has_changed_is_sent(folder, serve, capsys, monkeypatch):
    app, url = serve()
    monkeypatch.setenv("ATTNSERVE_URL", url)
    assert main(["push", str(folder)]) == 0
    capsys.readouterr()
    (folder / "config.json").write_text('{"width": 8}')
    (folder / "tokenizer.json").unlink()
    uploaded, send = [], push.upload
    monkeypatch.setattr(push, "upload", lambda path, *rest: uploaded.append(path) or send(path, *rest))
    assert main(["push", str(folder)]) == 0
    assert uploaded == ["/v1/checkpoints/mine/config.json"]
    assert stored_in(app) == {file: (folder / file).read_text() for file in FILES if file != "tokenizer.json"}
    assert [line.split()[:2] for line in capsys.readouterr().out.splitlines()[:-1]] == [
        ["uploaded", "config.json"],
        ["unchanged", "model.safetensors"],
        ["unchanged", "card.json"],
        ["removed", "tokenizer.json"],
    ]


def test_under_another_name_with_a_key(folder, serve, capsys, monkeypatch):
    secrets = {scope: make_secret() for scope in ("admin", "predict")}
    keys = [
        {"name": scope, "sha256": hash_secret(secret).hex(), "scopes": [scope]} for scope, secret in secrets.items()
    ]
    app, url = serve(keys=json.dumps(keys))
    monkeypatch.setenv("ATTNSERVE_API_KEY", secrets["admin"])
    assert main(["push", str(folder), "--url", url, "--name", "other"]) == 0
    assert stored_in(app, "other") == FILES
    for key, status in (("", 401), (secrets["predict"], 403)):
        assert main(["push", str(folder), "--url", url, "--api-key", key]) == 1
        said = capsys.readouterr().err
        assert said.startswith(
            f"attnserve: --api-key (ATTNSERVE_API_KEY): expected one that {url} accepts, got {status}"
        )
        assert said.count("\n") == 1


def test_what_a_service_says_is_shown(folder, serve, capsys):
    app, url = serve(max_checkpoint_bytes=2048)
    assert main(["push", str(folder), "--url", url]) == 1
    shown = capsys.readouterr()
    path = "/v1/checkpoints/mine/model.safetensors"
    assert shown.err == f"attnserve: {url}: PUT {path}: 413 body: expected at most 2048 bytes, got more\n"
    assert shown.out == ""
    # What came before it is there, and need not be sent again.
    assert stored_in(app) == {"config.json": "{}"}


def test_a_file_that_changes_while_it_is_sent_is_not_stored(folder, serve, capsys, monkeypatch):
    app, url = serve()
    hash_file = push.hash_file

    def hash_first(path, report):
        local = hash_file(path, report)
        path.write_text(path.read_text().swapcase())
        return local

    monkeypatch.setattr(push, "hash_file", hash_first)
    (folder / "config.json").write_text('{"a": 1}')
    assert main(["push", str(folder), "--url", url]) == 1
    assert "config.json: 400 Content-Digest: expected content with " in capsys.readouterr().err
    assert app.state.uploads.checkpoints.describe_all() == {}


@pytest.mark.parametrize("file", ["config.json", "model.safetensors"])
def test_a_folder_that_is_no_checkpoint(folder, file, capsys):
    (folder / file).unlink()
    (folder / "old.ckpt").touch()
    assert main(["push", str(folder)]) == 1
    said = capsys.readouterr().err
    assert said.startswith(f"attnserve: checkpoint: expected {file} in {folder}, got none; old.ckpt is a pickle, which")
    assert main(["push", str(folder / "nothing")]) == 1
    assert capsys.readouterr().err == f"attnserve: checkpoint: expected config.json in {folder}/nothing, got none\n"


@pytest.mark.parametrize("name", ["", "..", "a/b", ".hidden"])
def test_a_name_that_is_none(folder, name, capsys):
    assert main(["push", str(folder), "--name", name]) == 1
    assert capsys.readouterr().err.startswith("attnserve: --name: expected letters, digits, ")


def test_the_name_is_that_of_the_folder_however_it_is_called(folder, serve, monkeypatch):
    app, url = serve()
    monkeypatch.chdir(folder)
    assert main(["push", ".", "--url", url]) == 0
    assert stored_in(app) == FILES


def test_nobody_is_there(folder, capsys):
    url = f"http://127.0.0.1:{free_port()}"
    assert main(["push", str(folder), "--url", url]) == 1
    assert capsys.readouterr().err == f"attnserve: --url: expected a service at {url}, got: Connection refused\n"


def test_another_service_is_there(folder, serve_app, capsys):
    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"5")]})
        await send({"type": "http.response.body", "body": b"hello"})

    url = serve_app(app)
    assert main(["push", str(folder), "--url", url]) == 1
    assert (
        capsys.readouterr().err == f"attnserve: --url: expected a service of attnserve at {url}, got another answer\n"
    )


def test_a_bar_on_a_terminal(folder, serve, capsys, monkeypatch):
    _, url = serve()
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert main(["push", str(folder), "--url", url]) == 0
    assert "push mine" in capsys.readouterr().err
    assert main(["push", str(folder), "--url", url, "--quiet"]) == 0
    assert capsys.readouterr().err == ""


def test_nothing_but_the_standard_library_is_needed(folder, serve):
    app, url = serve()
    code = """
import sys
for name in ("torch", "numpy", "tqdm", "aiohttp", "fastapi", "orjson", "pydantic", "onnxruntime"):
    sys.modules[name] = None
from attnserve.cli import main
sys.exit(main())
"""
    command = [sys.executable, "-c", code, "push", str(folder), "--url", url]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert stored_in(app) == FILES


def test_weights_in_several_files_are_sent_as_one(folder, serve):
    app, url = serve()
    (folder / "model.safetensors").unlink()
    tensors = {name: np.full(3, index, np.float32) for index, name in enumerate("ab")}
    for name, tensor in tensors.items():
        save_file({name: tensor}, folder / f"{name}.safetensors")
    index = {"weight_map": {name: f"{name}.safetensors" for name in tensors}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert main(["push", str(folder), "--url", url]) == 0
    stored = load_file(app.state.uploads.checkpoints.folder / "mine" / "model.safetensors")
    assert {name: tensor.tolist() for name, tensor in stored.items()} == {"a": [0] * 3, "b": [1] * 3}
    # Nothing has changed, so nothing is sent, and nothing is left in the folder.
    assert main(["push", str(folder), "--url", url]) == 0
    assert not (folder / "model.safetensors").exists()

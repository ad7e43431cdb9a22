"""The socket that the service listens on, and who may be on its other end."""

import json
import socket

import pytest

from attnserve.cli import main
from attnserve.service import server
from attnserve.service.server import check_exposure, check_gpus, open_listener
from attnserve.service.settings import Settings
from attnserve.sessions import DeviceError

ENTRIES = json.dumps([{"name": "ci", "sha256": "1f" * 32, "scopes": []}])
# Nobody's, and nobody's link's: documentation and link-local addresses.
PUBLIC = ["0.0.0.0", "::", "192.0.2.1", "2001:db8::1", "::ffff:192.0.2.1", "0", "public.example", "mixed.example"]
LOOPBACK = ["127.0.0.1", "127.8.8.8", "::1", "localhost", "own.example"]


@pytest.fixture(autouse=True)
def names(monkeypatch):
    """Names that no resolver needs to know."""
    known = {
        "public.example": ["192.0.2.1"],
        "mixed.example": ["127.0.0.1", "192.0.2.1"],
        "own.example": ["127.0.0.1", "::1"],
        "link.example": ["fe80::1%lo"],
    }
    resolve = socket.getaddrinfo

    def answer(host, port, *rest, **options):
        if host == "nobody.example":
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        if host not in known:
            return resolve(host, port, *rest, **options)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port)) for address in known[host]]

    monkeypatch.setattr(server.socket, "getaddrinfo", answer)


def test_connections_send_at_once():
    with open_listener("127.0.0.1", 0) as listener:
        listener.listen()
        with socket.create_connection(listener.getsockname()):
            accepted, _ = listener.accept()
            with accepted:
                assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_names_that_no_model_has_are_logged(caplog):
    captures = {"*": "qk", "mine": "maps", "mnie": "off"}
    server.warn_of_strangers(Settings(captures=captures), ["mine"])
    assert [record.getMessage() for record in caplog.records] == ["--captures: the repository has no model mnie"]


def test_a_port_that_is_taken_is_named():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ValueError, match=rf"^--port \(ATTNSERVE_PORT\): .*, got {port}: Address already in use$"):
            open_listener("127.0.0.1", port)


@pytest.mark.parametrize("host", ["192.0.2.1", "2001:db8::1"])
def test_an_address_of_another_machine_is_named(host):
    with pytest.raises(ValueError, match=rf"^--host \(ATTNSERVE_HOST\): .*, got '{host}': "):
        open_listener(host, 0)


@pytest.mark.parametrize("host", [*PUBLIC, "link.example"])
def test_others_are_not_listened_to_without_keys(host):
    with pytest.raises(ValueError, match=r"^--host \(ATTNSERVE_HOST\): expected a loopback address") as caught:
        check_exposure(Settings(host=host))
    for word in (repr(host), "attnserve key", "--keys-file", "--allow-anonymous"):
        assert word in str(caught.value)


@pytest.mark.parametrize("host", [*PUBLIC, *LOOPBACK])
@pytest.mark.parametrize("given", [{"keys": ENTRIES}, {"keys_file": "keys.yaml"}, {"allow_anonymous": True}], ids=str)
def test_with_keys_or_by_permission_they_are(host, given):
    check_exposure(Settings(host=host, **given))


@pytest.mark.parametrize("host", LOOPBACK)
def test_this_machine_needs_neither(host):
    check_exposure(Settings(host=host))


@pytest.mark.parametrize("host", ["nobody.example", "a" * 70 + ".example", "1.2.3.4.5"])
def test_what_is_no_address_is_named(host):
    with pytest.raises(ValueError, match="expected an address or a name, got '"):
        check_exposure(Settings(host=host))


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_the_command_ends_in_one_line(tmp_path, monkeypatch, capsys, host):
    def listen(_):
        raise AssertionError("bound")

    monkeypatch.setattr(server, "open_listener", listen)
    monkeypatch.setattr(server, "Catalogue", listen)
    assert main(["serve", str(tmp_path), "--host", host]) == 1
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.startswith(
        "attnserve: --host (ATTNSERVE_HOST): expected a loopback address where there are no keys"
    )
    assert shown.err.count("\n") == 1


def test_a_wrong_keys_file_ends_the_command_before_it_listens(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(server, "set_up_logs", lambda *_: None)
    monkeypatch.setattr(server, "open_listener", lambda _: pytest.fail("bound"))
    path = tmp_path / "keys.yaml"
    path.write_text("[]")
    assert main(["serve", str(tmp_path), "--keys-file", str(path), "--host", "0.0.0.0"]) == 1
    assert capsys.readouterr().err.startswith(f"attnserve: keys_file: {path}: expected a list of entries with name")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("gpus", "1"),
        ("gpu_memory_bytes", 1000),
        ("gpu_arena", "as-requested"),
        ("cuda_graphs", 8),
        ("tf32_error", 0.01),
        ("gpu_weights_from", 0),
    ],
)
def test_what_is_asked_of_gpus_is_no_matter_for_the_cpu(monkeypatch, caplog, name, value):
    flag, variable = f"--{name.replace('_', '-')}", f"ATTNSERVE_{name.upper()}"
    with pytest.raises(ValueError, match=rf"^{flag} \({variable}\): expected --device cuda or auto beside it, got"):
        check_gpus(Settings(device="cpu", **{name: value}))
    monkeypatch.setattr(server, "explain_no_cuda", lambda: "this machine has no NVIDIA driver")
    check_gpus(Settings(**{name: value}))
    assert f"{flag}: nothing follows from it, models run on the CPU: this machine has no NVIDIA driver" in caplog.text
    with pytest.raises(DeviceError, match="device: expected a usable CUDA device, got none: this machine has no"):
        check_gpus(Settings(device="cuda", **{name: value}))
    monkeypatch.setattr(server, "explain_no_cuda", lambda: None)
    check_gpus(Settings(device="cuda", **{name: value}))


@pytest.mark.parametrize("device", ["auto", "cpu"])
def test_nothing_is_asked_of_gpus_by_itself(monkeypatch, caplog, device):
    monkeypatch.setattr(server, "explain_no_cuda", lambda: "this machine has no NVIDIA driver")
    check_gpus(Settings(device=device))
    assert not caplog.text

"""Verdicts on whole servers; `test_gpu.py` runs some."""

import dataclasses

import pytest

from benchmarks.gpu import servers

LOAD = {
    "answered_per_s": 200.0,
    "num_answered": 900,
    "latency_ms": {"p50": 1.5, "p99": 4.0},
    "errors": {},
    "statuses": {"200": 900},
    "faults": [],
}
SERVER = servers.Server(name="it", command=())


def measured(logit=1.0, **changed):
    return servers.Measured(answers=[{"id": 1, "logit": logit}], load=LOAD | changed)


def test_answers_that_are_the_same(plan, bundle):
    finding = servers.judge(plan, bundle, SERVER, measured(answered_per_s=50.0), measured())
    assert finding.broken == ()
    assert finding.cells["attnserve / this"] == "4.00"
    assert finding.cells["p50, p99: ms"] == "1.5, 4.0"
    assert servers.judge(plan, bundle, SERVER, measured(), None).cells["attnserve / this"] == ""


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (measured(logit=2.0), "it answers otherwise than attnserve"),
        (measured(logit=float("nan")), "it answers otherwise than attnserve"),
        (measured(errors={"disconnect": 3}), "3 requests: disconnect"),
        (measured(statuses={"200": 890, "500": 10}), "10 requests: status 500"),
        (measured(num_answered=0, answered_per_s=0.0, latency_ms=None), "nothing was answered"),
    ],
)
def test_servers_that_fail(plan, bundle, found, words):
    assert words in servers.judge(plan, bundle, SERVER, found, measured()).broken


def test_a_client_that_is_the_slow_one_is_told(plan, bundle):
    finding = servers.judge(plan, bundle, SERVER, measured(faults=["it used 1.00 of the one core"]), None)
    assert "the client could not keep up: it used 1.00" in finding.unjudged


def test_a_gpu_has_graphs_and_a_cpu_one_thread(plan, bundle):
    plan = dataclasses.replace(plan, compiles=True)
    names = [server.name for server in servers.list_servers(plan, bundle)]
    assert names == ["attnserve", "PyTorch, eager", "PyTorch, compiled"]
    commands = servers.list_servers(dataclasses.replace(plan, device="cuda"), bundle)
    assert [server.name for server in commands][1] == "attnserve, graphs"
    assert "--cuda-graphs" in commands[1].command
    assert "--num-threads" not in commands[0].command


def test_a_server_that_ends_at_once(tmp_path):
    server = servers.Server(name="it", command=("-c", "raise SystemExit('no such device')"))
    with pytest.raises(RuntimeError, match="it is not ready: no such device"), servers.listening(server, tmp_path):
        pass

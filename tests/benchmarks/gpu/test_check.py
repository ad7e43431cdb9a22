"""What `attnserve check` says, and what of it is a failure."""

import json
import subprocess

import pytest

from benchmarks.gpu import check

SAID = {
    "logits": 1e-6,
    "maps": 2e-6,
    "device": "cuda",
    "passed": True,
    "allowed": {"logits": 1e-5, "maps": 1e-4},
    "changed": 0,
    "weights_there": {"passed": True, "reason": None},
}


def done(said, code=0, stderr=""):
    stdout = said if isinstance(said, str) else json.dumps(said)
    return subprocess.CompletedProcess([], code, stdout=stdout, stderr=stderr)


def test_within_the_certificate(bundle):
    finding = check.judge(bundle, "cuda", done(SAID), 2.0)
    assert finding.verdict == "passed"
    assert finding.cells["logits"] == "1.0e-06 of 1.0e-05"
    noisy = done("Failed to load libcufft.so.12: no such file\n" + json.dumps(SAID))
    assert check.judge(bundle, "cuda", noisy, 2.0) == finding


@pytest.mark.parametrize(
    ("completed", "words"),
    [
        (done(SAID | {"passed": False}, 1), "outside its certificate"),
        (done(SAID | {"passed": False, "changed": 3}, 1), "outside its certificate, 3 answers name another class"),
        (done(SAID, 1), "outside its certificate"),
        (done(SAID | {"passed": False, "logits": None}, 1), "outside its certificate"),
        (done(SAID | {"device": "cpu", "weights_there": None}), "expected it to run on cuda"),
        (done(SAID | {"weights_there": {"passed": False, "reason": "a\nb"}}), "attention weights fail there: b"),
        (done("", 1, "warning\nattnserve: device: expected a usable CUDA device"), "attnserve: device: expected"),
        (done("", -11), "exit code -11"),
    ],
)
def test_failures(bundle, completed, words):
    (law,) = check.judge(bundle, "cuda", completed, 2.0).broken
    assert law.startswith(words)


def test_the_command_itself(bundle, plan):
    (finding,) = check.run(plan)
    assert finding.verdict == "passed"
    assert finding.cells["device"] == "cpu"

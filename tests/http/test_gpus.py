"""A whole service on GPUs, as far as ONNX Runtime's Python shows them: tests/fake_cuda.py."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from attnserve.service.engine import Engine
from attnserve.service.job import Job
from tests.c_library import compile_library
from tests.kinds import MAX_LENGTH, NUM_FEATURES

pytestmark = pytest.mark.http

ROOT = Path(__file__).resolve().parents[2]
BUNDLE = ROOT / "tests" / "bundles" / "v1"
POISON = [1] * 9
# The service under test finds GPUs, of which an error stays with the process after one batch, whose sessions nobody can
# let go then.
PRELUDE = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from tests.fake_cuda import FakeCuda
FakeCuda(num_gpus=2, poison={POISON}, aborts=True).install()
"""
FLAGS = (
    *("--device", "cuda", "--gpus", "0,1", "--engines", "2", "--cuda-graphs", "4", "--tf32-error", "0.001"),
    *("--gpu-weights-from", "100000"),
)


@pytest.fixture
def repository(tmp_path):
    shutil.copytree(BUNDLE, tmp_path / "tiny" / "1")
    return tmp_path


def test_a_service_on_two_gpus_and_its_end(repository, start_server):
    engine = Engine(BUNDLE, device="cpu", num_threads=1)
    with start_server(repository, *FLAGS, prelude=PRELUDE) as served:
        described = served.client.get("/v1/models/tiny").json()
        assert described["device"] == "cuda"
        assert described["gpus"] == {"devices": [0, 1], "graphs": "on", "tf32": "on", "weights_from": 100_000}
        assert described["tuning"]["num_engines"] == 4
        info = next(line for line in served.client.get("/metrics").text.splitlines() if "model_info{" in line)
        assert 'provider="CUDAExecutionProvider"' in info
        # Plain, recorded, and by the graph.
        for sequence in ([1, 2, 3], [3, 2, 1], [4, 4, 4], [1, 2, 3]):
            (found,) = served.ask("predict", {"sequences": [sequence], "top_k": 1})["predictions"]
            (expected,) = engine.run([Job(sequence=np.array(sequence), positions=np.array([2]))])
            (likeliest,) = found["top"][0]
            assert likeliest["id"] == expected.logits[0].argmax()
            assert likeliest["logit"] == pytest.approx(expected.logits[0].max(), abs=1e-5)
        assert served.ask("attention", {"sequences": [[1, 2, 3]], "diagnostics": ["sink"]})
        lost = served.post("predict", {"sequences": [POISON]})
        assert (lost.status_code, lost.json()["detail"]) == (503, "the device is lost, and the service about to end")
        assert served.process.wait(timeout=60) == 70
    said = served.log.read_text()
    assert "tiny/1 answers on cuda 0, 1 (CUDA graphs on, TF32 on, weights from 100000), kernels off" in said
    assert "CUDA failure 719" in said
    assert "golden cannot be replayed any more" in said
    assert "does not answer golden rightly any more" in said


def test_every_kind_of_model_has_graphs(breadth, broad, start_server):
    prelude = (
        f"import sys\nsys.path.insert(0, {str(ROOT)!r})\nfrom tests.fake_cuda import FakeCuda\nFakeCuda().install()\n"
    )
    flags = ("--device", "cuda", "--cuda-graphs", "4", "--gpu-weights-from", "100000")
    # With its leading row a sequence is one step longer than any that a client may send.
    generator = np.random.default_rng(0)
    longest = [generator.normal(size=(MAX_LENGTH, NUM_FEATURES)).tolist() for _ in range(3)]
    with start_server(breadth, *flags, prelude=prelude) as served:
        described = {model["name"]: model for model in served.client.get("/v1/models").json()["models"]}
        for name in described:
            assert served.client.get(f"/v1/models/{name}").json()["gpus"]["graphs"] == "on"
        # Plain, recorded, and by the graph.
        for sequence in longest:
            found, expected = (
                one.ask("predict", {"sequences": [sequence]}, model="leading") for one in (served, broad)
            )
            for entry, truth in zip(
                found["predictions"][0]["top"][0], expected["predictions"][0]["top"][0], strict=True
            ):
                assert (entry["id"], entry["logit"]) == (truth["id"], pytest.approx(truth["logit"], abs=1e-5))


def test_metrics_tell_of_a_driver(repository, start_server, tmp_path_factory, monkeypatch):
    folder = tmp_path_factory.mktemp("driver")
    compile_library(ROOT / "tests" / "attnserve" / "nvml.c", folder / "libnvidia-ml.so.1")
    monkeypatch.setenv("LD_LIBRARY_PATH", str(folder))
    for device, expected in (
        ("auto", {"gpu_driver_answers": "1.0", 'gpu_busy_ratio{gpu="0",uuid="GPU-0"}': "0.25"}),
        ("cpu", {}),
    ):
        with start_server(repository, "--device", device) as served:
            lines = served.client.get("/metrics").text.splitlines()
        found = dict(line.rsplit(" ", 1) for line in lines if line.startswith("gpu_"))
        assert {name: found[name] for name in expected} == expected
        assert len(found) == (6 if expected else 0)


def test_an_error_while_weights_are_computed_is_one_of_the_device(repository, start_server):
    # As many steps as no sequence of golden has.
    prelude = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from tests.fake_cuda import FakeCuda
FakeCuda(poison_rows=11, aborts=True).install()
"""
    with start_server(repository, "--device", "cuda", "--gpu-weights-from", "1000", prelude=prelude) as served:
        # Small: weighed on the CPU. Large, and not poisoned.
        for sequences in ([[1] * 11], [[1] * 12] * 2):
            assert served.ask("attention", {"sequences": sequences})["predictions"]
        lost = served.post("attention", {"sequences": [[1] * 11] * 2})
        assert (lost.status_code, lost.json()["detail"]) == (503, "the device is lost, and the service about to end")
        assert served.process.wait(timeout=60) == 70
    said = served.log.read_text()
    assert "what a device was asked about attention failed" in said
    assert "CUDA failure 719" in said
    assert "golden cannot be replayed any more" in said


def test_the_cpu_has_none(repository, start_server):
    with start_server(repository, "--device", "cpu") as served:
        assert served.client.get("/v1/models/tiny").json()["gpus"] is None

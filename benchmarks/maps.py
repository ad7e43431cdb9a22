"""`python -m benchmarks.maps`: all maps of 512 steps from a capture, and from a FastAPI handler with `tolist()`.

CPU time of each whole server for one answer, on one core, in one run: 6 layers x 8 heads x 512 x 512 weights.
"""

import argparse
import json
import random
import statistics
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import zstandard
from safetensors.numpy import load

from benchmarks.models import OPTIONS
from benchmarks.reference import export_reference, name_reference
from benchmarks.service import Request, Service, split_cores, start_module, start_service

LENGTH = 512
JSON = (("Content-Type", "application/json"),)
ENCODINGS = ("zstd", "gzip", "identity")
DTYPES = ("float32", "float16", "uint8_sqrt")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--variant", choices=OPTIONS, default="expressive")
    parser.add_argument("--repeats", type=int, default=5, help="answers of each kind; medians are shown")
    options = parser.parse_args()
    core, _ = split_cores()
    repository = export_reference(options.variant)
    with tempfile.TemporaryDirectory() as folder:
        maps = Path(folder) / "maps.npy"
        # All of it: what is asked for is larger than a service hands out unless it is told to.
        with start_service(repository, core, "--max-response-bytes", str(1 << 30)) as service:
            ours = dict(measure(service, name_reference(options.variant), options.repeats, maps))
        with start_module("benchmarks.tolist", [str(maps)], core, Path(folder) / "log") as handler:
            path = Request("/maps")
            theirs = [handler.cpu_ms([path]) / 1000 for _ in range(2)]
            num_bytes = len(handler.ask(path)[1])
    print(f"{'':<28} {'CPU s':>8} {'MB':>8} {'worst row':>10} {'x less CPU':>11}")
    slowest = statistics.median(theirs)
    print(f"{'FastAPI, tolist(), JSON':<28} {slowest:>8.2f} {num_bytes / 1e6:>8.1f} {'0':>10} {1:>11.1f}")
    for name, (seconds, size, error) in ours.items():
        print(f"{name:<28} {seconds:>8.3f} {size / 1e6:>8.1f} {error:>10} {slowest / seconds:>11.1f}")
    return 0


def measure(service: Service, model: str, repeats: int, place: Path) -> Iterator[tuple[str, tuple[float, int, str]]]:
    """Name of a format; CPU seconds, bytes and the worst row error of an answer in it."""
    sequence = random.Random(0).choices(range(1000), k=LENGTH)
    body = json.dumps({"sequences": [sequence], "top_k": 1}).encode()
    _, answer = service.ask(Request(f"/v1/models/{model}/captures", "POST", JSON, body))
    path = f"/v1/captures/{json.loads(answer)['id']}/attention?quantity=weights"
    for dtype in DTYPES:
        for encoding in ENCODINGS:
            headers = (("Accept", "application/x-safetensors"), ("Accept-Encoding", encoding))
            request = Request(f"{path}&dtype={dtype}", headers=headers)
            head, packed = service.ask(request)
            seconds = service.median_cpu_ms([request], repeats) / 1000
            if (dtype, encoding) == ("float32", "zstd"):
                tensors = load(zstandard.ZstdDecompressor().decompress(packed))
                np.save(place, tensors["sequences.0.weights"])
            yield f"safetensors {dtype} {encoding}", (seconds, len(packed), head["Attention-Max-Row-Error"])


if __name__ == "__main__":
    raise SystemExit(main())

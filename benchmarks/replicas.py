"""`python -m benchmarks.replicas`: what a second replica behind the gateway adds, each replica on one core of its own.

It needs a Docker engine and the images of docker-compose.yml (`docker compose build`). Sequences are long, so that the
client and the gateway, which run on the same cores, take next to nothing of them.
"""

import argparse
import os
import secrets
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import numpy as np

from benchmarks.reference import CACHE, export_reference, name_reference

PROJECT, VARIANT = "attnserve-replicas", "expressive"
OWNER = 10001


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.replicas", description=__doc__)
    parser.add_argument("--replicas", type=int, default=2, help="at most the number of cores")
    parser.add_argument("--length", type=int, default=512, help="steps of every sequence")
    parser.add_argument("--seconds", type=float, default=30.0, help="of each measurement")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--port", type=int, default=8790)
    arguments = parser.parse_args()
    cores = sorted(os.sched_getaffinity(0))
    if arguments.replicas > len(cores):
        parser.error(f"--replicas: expected at most the {len(cores)} cores, got {arguments.replicas}")
    environment = os.environ | {
        "REPOSITORY": str(_copy_repository()),
        "SECRETS": str(_make_secrets()),
        "PORT": str(arguments.port),
        "SERVICE_THREADS": "1",
    }
    rates: dict[int, list[float]] = {1: [], arguments.replicas: []}
    try:
        for _ in range(arguments.repeats):
            for num_replicas, found in rates.items():
                _start(num_replicas, cores, environment)
                found.append(_measure(num_replicas, arguments))
                print(f"{num_replicas} replicas: {found[-1]:.2f} sequences/s", file=sys.stderr)
    finally:
        _compose(environment, "down", "--volumes", "--timeout", "5")
    one, several = (float(np.median(found)) for found in rates.values())
    print(f"| replicas | sequences of {arguments.length} /s | |\n| --- | --- | --- |")
    print(f"| 1 | {one:.2f} | 1 |\n| {arguments.replicas} | {several:.2f} | {several / one:.2f} |")
    return 0


def _copy_repository() -> Path:
    """The reference model, in a folder that containers may read and write as their user."""
    name, folder = name_reference(VARIANT), (CACHE / "replicas").resolve()
    if not folder.exists():
        shutil.copytree(export_reference(VARIANT) / name, folder / name)
    for path in (folder, *folder.rglob("*")):
        os.chown(path, OWNER, OWNER)
    return folder


def _make_secrets() -> Path:
    """Passwords that the compose file mounts, and nothing here needs."""
    folder = (CACHE / "replicas-secrets").resolve()
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("postgres-password", "grafana-password"):
        (folder / name).write_text(secrets.token_hex(16))
    return folder


def _start(num_replicas: int, cores: list[int], environment: dict[str, str]) -> None:
    _compose(environment, "up", "-d", "--wait", "--scale", f"service={num_replicas}", "--scale", "worker=0")
    containers = _compose(environment, "ps", "--quiet", "service").split()
    for container, core in zip(containers, cores, strict=False):
        subprocess.run(["docker", "update", "--cpuset-cpus", str(core), container], check=True, capture_output=True)


def _compose(environment: dict[str, str], *words: str) -> str:
    command = ["docker", "compose", "--project-name", PROJECT, *words]
    return subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout


def _measure(num_replicas: int, arguments: argparse.Namespace) -> float:
    """Sequences answered per second, by clients that ask again as soon as they are answered."""
    url = f"http://127.0.0.1:{arguments.port}/v1/models/{name_reference(VARIANT)}/predict"
    sequence = np.random.default_rng(0).integers(0, 1000, arguments.length).tolist()
    _wait(url, sequence, num_replicas)
    counts = [0] * (2 * num_replicas)
    end = time.monotonic() + arguments.seconds

    def ask(index: int) -> None:
        with httpx.Client(timeout=60) as client:
            while time.monotonic() < end:
                client.post(url, json={"sequences": [sequence]}).raise_for_status()
                counts[index] += 1

    begin = time.monotonic()
    threads = [threading.Thread(target=ask, args=(index,)) for index in range(len(counts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(counts) / (time.monotonic() - begin)


def _wait(url: str, sequence: list[int], num_replicas: int) -> None:
    """Until every replica has answered, and the gateway has seen each ready for a while."""
    answered = 0
    while answered < 4 * num_replicas:
        if httpx.post(url, json={"sequences": [sequence]}, timeout=60).status_code == 200:
            answered += 1
        else:
            time.sleep(0.5)
    time.sleep(3)


if __name__ == "__main__":
    raise SystemExit(main())

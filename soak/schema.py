"""schemathesis over the live /openapi.json: what the document promises holds, and what it forbids is refused."""

import os
import re
import subprocess
import sys
import urllib.request
from pathlib import Path

from soak.server import Server, copy_models, serving
from soak.verdict import Report, check_zero

NUM_EXAMPLES = 500
CONFIG = Path(__file__).with_name("schemathesis.toml")
MODELS = ("nt-dot-product", "nt-elliptical", "nt-expressive")
TIMEOUT_S = 4 * 3600
COUNT = re.compile(r'^inference_request_duration_seconds_count\{.*status="(\d+)".*\} (\S+)$', re.MULTILINE)
# Where the configuration finds the key: services without keys open what the document says needs one.
KEY_VARIABLE = "SOAK_KEY"
SCOPES = "predict,attention,admin"
# Loading and unloading change the repository, and the models that others are asked about.
FLAGS = ("--log-level", "warning", "--poll-seconds", "0")


def run(repository: Path, work: Path, scale: float) -> Report:
    """Start a server of copies and let schemathesis ask it."""
    copies = copy_models(repository, MODELS, work / "repository")
    keys = work / "keys.json"
    make = [sys.executable, "-m", "attnserve", "key", "soak", "--scopes", SCOPES, "--file", str(keys)]
    key = subprocess.run(make, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()
    with serving(copies, work, *FLAGS, "--keys-file", str(keys)) as server:
        return explore(server, key, max(5, round(NUM_EXAMPLES * scale)), work)


def explore(server: Server, key: str, num_examples: int, work: Path) -> Report:
    """Run schemathesis with a seed of its own each time; it prints the one it took."""
    command = [sys.executable, "-m", "schemathesis.cli", "--config-file", str(CONFIG), "--no-color"]
    command += ["run", f"{server.url}/openapi.json", "--max-examples", str(num_examples)]
    # In a folder of its own: it looks for more configuration above, and leaves its examples behind.
    environment = os.environ | {KEY_VARIABLE: key}
    done = subprocess.run(command, cwd=work, env=environment, capture_output=True, text=True, timeout=TIMEOUT_S)
    request = urllib.request.Request(f"{server.url}/metrics", headers={"Authorization": f"Bearer {key}"})
    with urllib.request.urlopen(request) as response:
        statuses = count_statuses(response.read().decode())
    return judge(done.returncode, done.stdout + done.stderr, statuses, server.num_tracebacks)


def count_statuses(metrics: str) -> dict[str, int]:
    """Answers by status, from the service's own metrics."""
    statuses: dict[str, int] = {}
    for status, number in COUNT.findall(metrics):
        statuses[status] = statuses.get(status, 0) + round(float(number))
    return dict(sorted(statuses.items()))


def judge(exit_code: int, output: str, statuses: dict[str, int], num_tracebacks: int) -> Report:
    """What a run of schemathesis shows."""
    seed = re.search(r"^Seed: (\d+)$", output, re.MULTILINE)
    generated = re.search(r"^\s+([\d,]+) generated", output, re.MULTILINE)
    broken = [] if exit_code == 0 else [f"schemathesis ended with {exit_code}:\n{output[-8000:]}"]
    broken += check_zero("answers with 500", statuses.get("500", 0))
    broken += check_zero("tracebacks in the log", num_tracebacks)
    if statuses.get("200", 0) < sum(statuses.values()) / 20:
        broken.append(f"too few questions were answered 200: {statuses}")
    return Report(
        figures={
            "cases": generated[1] if generated else "unknown",
            **{f"status {status}": number for status, number in statuses.items()},
            "seed": seed[1] if seed else "unknown",
        },
        broken=broken,
    )

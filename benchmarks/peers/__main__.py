"""`python -m benchmarks.peers`: CPU time per request of whole servers, attnserve and its peers, in one run."""

import argparse
import os
import platform
import signal
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any, NoReturn

import orjson

from benchmarks.peers.conversation import Conversation, ConversationEnded
from benchmarks.peers.environments import ROOT, EnvironmentFailed, list_versions, make_environment
from benchmarks.peers.measure import PeerFailed, Plan, environment_of, measure, model_file
from benchmarks.peers.report import write_table
from benchmarks.peers.table import PEERS, VARIANT
from benchmarks.peers.traffic import make_sequences
from benchmarks.reference import export_reference

CACHE = ROOT / ".cache" / "benchmarks" / "peers"


def main() -> int:
    arguments = read_arguments()
    # SIGINT too: a shell script starts what it puts in the background with Ctrl-C ignored.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _end)
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        print("two cores are needed: one for the server, one for the client", file=sys.stderr)
        return 1
    chosen = [peer for peer in PEERS if not arguments.only or peer.name in arguments.only]
    plan = Plan(
        repeats=arguments.repeats,
        num_mixed=arguments.requests,
        num_tiny=arguments.tiny_requests,
        num_connections=arguments.connections,
        batch_size=arguments.batch_size,
        idle_seconds=arguments.idle_seconds,
        max_seconds=arguments.max_seconds,
        server_core=cores[0],
    )
    export_reference(VARIANT, CACHE)
    environments: dict[str, Path] = {}
    failures: dict[str, str] = {}
    # Bare ONNX Runtime runs in the environment of attnserve.
    for name in dict.fromkeys(["attnserve", *(peer.environment for peer in chosen)]):
        bin_folder = CACHE / "environments" / name / "bin"
        try:
            environments[name] = bin_folder if arguments.skip_install else make_environment(name, bin_folder.parents[1])
        except EnvironmentFailed as error:
            failures[name] = str(error)
    versions = {name: list_versions(folder) for name, folder in environments.items() if (folder / "python").exists()}

    traffic, truth = CACHE / "traffic.json", CACHE / "truth.json"
    traffic.write_bytes(orjson.dumps(make_sequences(plan.num_mixed, plan.num_tiny)))
    load_before = os.getloadavg()[0]
    results: dict[str, Any] = {"peers": {}, "versions": versions, "plan": asdict(plan)}
    bare, client = _start_bare(environments["attnserve"], traffic, cores[0]), None
    try:
        truth.write_text(bare.hear())
        command = [sys.executable, "-m", "benchmarks.peers.client", str(traffic), str(truth)]
        client = Conversation(command, dict(os.environ), cores[1], ROOT)
        # The runner itself does next to nothing, and that not where the servers are.
        os.sched_setaffinity(0, {cores[1]})
        for peer in chosen:
            print(f"{peer.name}: measuring", file=sys.stderr, flush=True)
            try:
                if peer.environment in failures:
                    raise PeerFailed(failures[peer.environment])
                folder = environments[peer.environment]
                results["peers"][peer.name] = measure(peer, plan, folder, CACHE, bare, client)
            except (PeerFailed, OSError) as error:
                print(f"{peer.name}: {error}", file=sys.stderr)
                results["peers"][peer.name] = {"failure": str(error)}
    except ConversationEnded as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped; everything that was started has ended", file=sys.stderr)
        return 130
    finally:
        for each in (bare, client):
            if each is not None:
                each.end()
    results["machine"] = {**_describe_machine(versions["attnserve"]), "load_before": load_before}
    print(write_table(results))
    if arguments.json:
        arguments.json.write_bytes(orjson.dumps(results, option=orjson.OPT_INDENT_2))
    return 1 if any("failure" in peer for peer in results["peers"].values()) else 0


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.peers", description=__doc__)
    names = [peer.name for peer in PEERS]
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=names, help=f"of {', '.join(names)}")
    parser.add_argument("--requests", type=int, default=320, help="sequences of 8-256 in each repeat")
    parser.add_argument("--tiny-requests", type=int, default=1000, help="sequences of 8 in each repeat")
    parser.add_argument("--connections", type=int, default=16)
    parser.add_argument("--batch-size", type=int, default=16, help="limit of servers that batch by a number")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--idle-seconds", type=float, default=20.0)
    parser.add_argument("--max-seconds", type=float, default=300.0, help="for a server to start, and for each pass")
    parser.add_argument("--skip-install", action="store_true", help="take the environments as they are")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every figure of every repeat there")
    return parser.parse_args()


def _start_bare(bin_folder: Path, traffic: Path, core: int) -> Conversation:
    command = [str(bin_folder / "python"), "-m", "benchmarks.peers.bare", str(model_file(CACHE)), str(traffic)]
    return Conversation(command, environment_of(bin_folder, CACHE / "bentoml"), core, ROOT)


def _describe_machine(versions: dict[str, str]) -> dict[str, Any]:
    information = Path("/proc/cpuinfo").read_text()
    models = [line.partition(":")[2].strip() for line in information.splitlines() if line.startswith("model name")]
    return {
        "processor": models[0] if models else platform.machine(),
        "num_cores": os.cpu_count(),
        "python": versions["python"],
        "onnxruntime": versions.get("onnxruntime-gpu") or versions.get("onnxruntime"),
        "numpy": versions["numpy"],
        "load_after": os.getloadavg()[0],
    }


def _end(*_: object) -> NoReturn:
    raise KeyboardInterrupt


if __name__ == "__main__":
    raise SystemExit(main())

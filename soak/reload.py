"""Versions come and go under load: nobody notices, nothing is left behind, and a broken one displaces nothing."""

import asyncio
import json
import os
import shutil
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from soak.connection import Question, Reply
from soak.crowd import Crowd
from soak.questions import Asked, ask_prediction, draw_ids
from soak.server import Server, copy_models, serving
from soak.verdict import Report, check_growth, check_zero

NUM_RELOADS = 50
NUM_BROKEN = 5
MODEL = "nt-expressive"
# The allocator keeps what a session gives back, in pieces; after 20 of them it has all the pieces it needs.
SETTLED_SHARE = 0.4
MOST_GROWTH_PERCENT = 10.0
# Of threads and files: a connection may be new, and a thread pool may be at work.
MOST_MORE = 4
PATIENCE_S = 60.0
NUM_SEQUENCES = 64
TOLERANCE = 1e-5


def run(repository: Path, work: Path, scale: float) -> Report:
    """Reload under load and find out who noticed."""
    copies = copy_models(repository, [MODEL], work / "repository")
    with serving(copies, work, "--poll-seconds", "0.2", "--log-level", "warning") as server:
        return asyncio.run(_reload(server, copies / MODEL, scale))


class Reader:
    """Asks the same questions again and again, and knows the answers and who may give them."""

    def __init__(self, server: Server) -> None:
        asked = Asked(name=MODEL, vocabulary_size=8, longest=128)
        generator = np.random.default_rng(0)
        self._questions = [ask_prediction(asked, [draw_ids(asked, generator)]) for _ in range(NUM_SEQUENCES)]
        self._logits = {one.body: read_logits(_post(f"{server.url}{one.path}", one.body)) for one in self._questions}
        self.versions = {1}
        """Those that may answer."""
        self.seen: set[int] = set()
        """Those that have."""

    def draw(self, number: int) -> Question:
        """A question."""
        return self._questions[number % NUM_SEQUENCES]

    def judge(self, question: Question, reply: Reply) -> str | None:
        """Answered, by a version that is there, and rightly: all versions are copies of one."""
        if reply.status != 200:
            return f"{reply.status} {reply.body[:200]!r}"
        document = orjson.loads(reply.body)
        if document["version"] not in self.versions:
            return f"version {document['version']} answered; expected one of {sorted(self.versions)}"
        self.seen.add(document["version"])
        expected = self._logits[question.body]
        found = read_logits(document)
        return None if np.allclose(found, expected, rtol=0, atol=TOLERANCE) else f"expected {expected}, got {found}"


async def _reload(server: Server, folder: Path, scale: float) -> Report:
    num_reloads = max(6, round(NUM_RELOADS * scale))
    reader = Reader(server)
    crowd = Crowd(server.port, reader.draw, judge=reader.judge)
    seconds, resident, displaced = [], [], 0
    settled = max(2, round(num_reloads * SETTLED_SHARE))
    breaks = [int((number + 0.5) * num_reloads / NUM_BROKEN) for number in range(NUM_BROKEN)]
    threads = files = 0
    async with crowd.asking():
        for number in range(num_reloads):
            version = number + 2
            begin = time.monotonic()
            reader.versions |= {version}
            await asyncio.to_thread(WAYS[number % len(WAYS)], server, folder, version)
            await _wait_for_version(server, version)
            seconds.append(time.monotonic() - begin)
            # Answers of the one before may still be on their way; those of older ones may not.
            reader.versions -= {version - 2}
            await asyncio.to_thread(shutil.rmtree, folder / str(version - 1))
            for index in (index for index, place in enumerate(breaks) if place == number):
                displaced += await asyncio.to_thread(_try_broken, server, folder, version, index)
            resident.append(server.resident_mib)
            if number == settled:
                threads, files = server.num_threads, server.num_files
    await asyncio.sleep(1)
    more_threads, more_files = server.num_threads - threads, server.num_files - files
    await crowd.close()
    return Report(
        figures={
            "answers": crowd.num_answers,
            "versions that answered": len(reader.seen),
            "reloads": num_reloads,
            "seconds of a reload, mean": float(np.mean(seconds)),
            "broken versions": len(breaks),
            "resident MiB, after every reload": " ".join(f"{one:.0f}" for one in resident),
            "more threads": more_threads,
            "more files": more_files,
        },
        broken=[
            *check_zero("failed requests", crowd.num_faults + crowd.num_refused, "; ".join(crowd.faults[:3])),
            *check_zero("broken versions displaced one that works, or were not refused", displaced),
            *check_seen(len(reader.seen), num_reloads + 1),
            *check_growth("memory", resident[settled], resident[-1], most_percent=MOST_GROWTH_PERCENT, scale=scale),
            *check_more("threads", more_threads),
            *check_more("open files", more_files),
            *check_zero("tracebacks in the log", server.num_tracebacks),
        ],
    )


def check_more(what: str, more: int) -> list[str]:
    """The law that every reload gives back what it took."""
    return [f"{more} more {what} at the end, at most {MOST_MORE} may be"] if more > MOST_MORE else []


def check_seen(num_seen: int, num_versions: int) -> list[str]:
    """The law that there was load all the while: nearly every version had something to answer."""
    few = num_seen < 0.9 * num_versions
    return [f"only {num_seen} of {num_versions} versions answered anything: there was no load"] if few else []


def read_logits(document: Any) -> list[float]:
    """Of the only sequence, by id."""
    (top,) = document["predictions"][0]["top"]
    return [entry["logit"] for entry in sorted(top, key=lambda entry: entry["id"])]


def _appear(_: Server, folder: Path, version: int) -> None:
    """The newest version, with nothing that names another."""
    _copy(folder, version)
    (folder / "aliases.json").unlink(missing_ok=True)


def _name(_: Server, folder: Path, version: int) -> None:
    """A version that `aliases.json` names, replaced as a whole."""
    _copy(folder, version)
    temporary = folder / ".aliases"
    temporary.write_text(json.dumps({"active": version}), "utf-8")
    temporary.replace(folder / "aliases.json")


def _load(server: Server, folder: Path, version: int) -> None:
    """A version that a client of the protocol has loaded."""
    _copy(folder, version)
    _post(f"{server.url}/v2/repository/models/{MODEL}/load", orjson.dumps({"parameters": {"version": version}}))


WAYS: tuple[Callable[[Server, Path, int], None], ...] = (_appear, _name, _load)


def _copy(folder: Path, version: int, damage: Callable[[Path], object] = lambda _: None) -> None:
    """From the one before, and renamed when it is whole."""
    temporary = folder / f".{version}-{os.getpid()}"
    shutil.copytree(folder / str(max(_list_versions(folder))), temporary)
    damage(temporary)
    temporary.rename(folder / str(version))


def _list_versions(folder: Path) -> list[int]:
    return [int(entry.name) for entry in folder.iterdir() if entry.name.isdecimal()]


DAMAGES: tuple[Callable[[Path], object], ...] = (
    lambda bundle: os.truncate(bundle / "model.onnx", 1000),
    lambda bundle: (bundle / "manifest.json").write_text("{"),
    lambda bundle: (bundle / "golden.npz").unlink(),
    lambda bundle: (bundle / "model.onnx").write_bytes((bundle / "model.onnx").read_bytes()[::-1]),
    lambda bundle: (bundle / "manifest.json").write_text((bundle / "manifest.json").read_text("utf-8")[:-200]),
)


def _try_broken(server: Server, folder: Path, version: int, index: int) -> int:
    """Put a broken version there as the newest, ask for it by name too; 1 if it displaced the one that works."""
    broken = 1_000_000 + index
    _copy(folder, broken, DAMAGES[index % len(DAMAGES)])
    (folder / "aliases.json").unlink(missing_ok=True)
    refused = False
    try:
        _post(f"{server.url}/v2/repository/models/{MODEL}/load", b'{"parameters": {"version": %d}}' % broken)
    except urllib.error.HTTPError as error:
        refused = error.code == 409
    # Two looks at the repository.
    time.sleep(0.5)
    kept = _served_version(server) == version
    (folder / str(broken)).rename(folder / ".broken")
    shutil.rmtree(folder / ".broken")
    return int(not (kept and refused))


def _served_version(server: Server) -> int:
    with urllib.request.urlopen(f"{server.url}/v1/models/{MODEL}") as response:
        return int(json.load(response)["version"])


async def _wait_for_version(server: Server, version: int) -> None:
    end = time.monotonic() + PATIENCE_S
    while await asyncio.to_thread(_served_version, server) != version:
        if time.monotonic() > end:
            raise TimeoutError(f"expected version {version} to be served within {PATIENCE_S:g} s")
        await asyncio.sleep(0.05)


def _post(url: str, body: bytes) -> Any:
    request = urllib.request.Request(url, body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=PATIENCE_S) as response:
        return json.load(response)

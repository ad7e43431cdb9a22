"""Workers that build nothing: a process that says it has, in milliseconds, instead of one that traces torch."""

import contextlib
import hashlib
import shutil
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from dbos import DBOSClient, DBOSPortableJSONSerializer, WorkflowSerializationFormat

from attnserve.bundle import read_manifest, verify_files
from attnserve.jobs import APPLICATION, JOB_FORMAT, LOG, QUEUE, WORKFLOW, ExportOrder
from attnserve.records import to_json
from attnserve.worker.build import Builder
from attnserve.worker.database import open_database
from attnserve.worker.listening import Limits
from attnserve.worker.places import Places
from attnserve.worker.worker import Rhythm, Worker

BUNDLE = Path(__file__).resolve().parents[1] / "bundles" / "v1"
# As `attnserve.export.child`, with a bundle from elsewhere. `config.json` says in Python what goes otherwise.
FAKE_CHILD = (
    f"""
BUNDLE = {str(BUNDLE)!r}
"""
    + """
import hashlib, json, os, shutil, signal, subprocess, sys, time
from attnserve.lifeline import die_with
parent, work, folder, *flags = sys.argv[1:]
die_with(int(parent))
say = lambda document: print(json.dumps(document), flush=True)
begin = lambda step: say({"progress": {"step": step, "message": f"doing {step}"}})
hash_of = lambda path: hashlib.sha256(open(path, "rb").read()).hexdigest()
def conclude(state="succeeded", **fields):
    near = {"reference": 1e-7, "allowed": 4e-7, "measured": 2e-7}
    parity = {"logits": near, "maps": near, "reference_logits": 1e-7, "table": "a table"}
    outcome = {"state": state, **({"parity": parity} if state == "succeeded" else {}), **fields}
    files = {name: hash_of(f"{work}/{name}") for name in os.listdir(work) if os.path.isfile(f"{work}/{name}")}
    manifest = hash_of(f"{folder}/manifest.json")
    say({"verdict": {"outcome": outcome, "manifest_sha256": manifest, "checkpoint_sha256": files}})
shutil.copytree(BUNDLE, folder, dirs_exist_ok=True)
manifest = json.load(open(f"{folder}/manifest.json"))
with open(f"{folder}/manifest.json", "w") as file:
    json.dump({**manifest, "card": {"made by": os.path.basename(folder), "flags": flags}}, file)
begin("load")
begin("graph")
exec(open(f"{work}/config.json").read())
begin("verify")
conclude()
"""
)
NO_TENSORS = (2).to_bytes(8, "little") + b"{}"
"""The shortest file that is one of safetensors."""
ROOMY = Limits(seconds=60, num_bytes=4 * 1024**3)
FAST = Rhythm(poll_s=0.05, beat_s=0.1, patience_s=1.0, sweep_s=0.2)
PATIENCE_S = 60.0


def make_builder(limits: Limits = ROOMY, code: str = FAKE_CHILD) -> Builder:
    return Builder(limits=limits, command=(sys.executable, "-P", "-c", code))


def write_checkpoint(folder: Path, config: str = "", weights: bytes = NO_TENSORS) -> dict[str, str]:
    """A folder for `FAKE_CHILD`; returns the hashes of its files."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(config)
    (folder / "model.safetensors").write_bytes(weights)
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.iterdir()}


def everything_in(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*"))


def versions_in(repository: Path) -> list[str]:
    """What a reader sees, all of it whole: `model/version`. What begins with a dot nobody sees."""
    found = [path for path in repository.glob("[!.]*/[!.]*") if path.name != "aliases.json"]
    for folder in found:
        verify_files(folder, read_manifest(folder))
    return sorted(path.relative_to(repository).as_posix() for path in found)


class Jobs:
    """What a service does: puts jobs into the queue of a database, and looks at them."""

    def __init__(self, url: str, places: Places) -> None:
        self.url = url
        self.places = places
        open_database(url).dispose()
        self.client = DBOSClient(
            system_database_url=url, serializer=DBOSPortableJSONSerializer(), application_name=APPLICATION
        )

    def add(
        self,
        config: str = "",
        *,
        job: str | None = None,
        format: int = JOB_FORMAT,
        is_uploaded: bool = False,
        **fields: Any,
    ) -> str:
        """Queue the export of a checkpoint with this config, as a service of this format does; returns the job."""
        job = job or str(uuid.uuid4())
        folder = self.places.checkpoints.parent / "sources" / job
        files = write_checkpoint(folder, config)
        if is_uploaded:
            blobs = self.places.checkpoints / ".blobs"
            blobs.mkdir(parents=True, exist_ok=True)
            for file, sha256 in files.items():
                shutil.move(folder / file, blobs / sha256)
        checkpoint = "mine" if is_uploaded else str(folder)
        order = ExportOrder(**{"checkpoint": checkpoint, "files": files, "model": "m", "version": 1, **fields})
        return self.add_document({**to_json(order), "format": format}, job=job, format=format)

    def add_document(self, document: Any, *, job: str | None = None, format: int = JOB_FORMAT) -> str:
        """Queue whatever may be in the place of an order."""
        job = job or str(uuid.uuid4())
        self.client.enqueue(
            {
                "workflow_name": WORKFLOW,
                "queue_name": QUEUE,
                "workflow_id": job,
                "app_version": str(format),
                "serialization_type": WorkflowSerializationFormat.PORTABLE,
            },
            document,
        )
        return job

    def status(self, job: str) -> Any:
        (status,) = self.client.list_workflows(workflow_ids=[job])
        return status

    def wait(self, job: str, *states: str) -> Any:
        """The status of a job once it has one of these states; fails after a minute."""
        end = time.monotonic() + PATIENCE_S
        while (status := self.status(job)).status not in (states or ("SUCCESS",)):
            if time.monotonic() > end or (status.status == "ERROR" and "ERROR" not in states):
                pytest.fail(f"expected {states}, got {status.status}: {status.error}")
            time.sleep(0.02)
        return status

    def outcome(self, job: str) -> dict[str, Any]:
        """How a job ended."""
        output: dict[str, Any] = self.wait(job).output
        return output

    def steps(self, job: str) -> list[str]:
        """The steps a job has told of, in their order."""
        return [line["step"] for line in self.client.read_stream(job, LOG)]


def wait_until(holds: Callable[[], Any], what: str = "what was waited for") -> None:
    """Look again and again until something holds; fails after a minute."""
    end = time.monotonic() + PATIENCE_S
    while not holds():
        if time.monotonic() > end:
            pytest.fail(f"{what} did not come within {PATIENCE_S:g} s")
        time.sleep(0.02)


def make_places(folder: Path) -> Places:
    (folder / "repository").mkdir()
    return Places(repository=folder / "repository", checkpoints=folder / "checkpoints")


def make_url(folder: Path) -> str:
    return f"sqlite:///{folder / 'jobs.sqlite'}"


@contextlib.contextmanager
def running(
    url: str,
    places: Places,
    *,
    name: str = "worker",
    builder: Builder | None = None,
    rhythm: Rhythm = FAST,
    alive_file: Path | None = None,
) -> Iterator[Worker]:
    """A worker in a thread of this process; one at a time, since DBOS is."""
    engine = open_database(url)
    worker = Worker(
        engine=engine,
        url=url,
        name=name,
        places=places,
        builder=builder or make_builder(),
        rhythm=rhythm,
        alive_file=alive_file,
    )
    thread = threading.Thread(target=worker.run)
    thread.start()
    try:
        yield worker
    finally:
        worker.stop()
        thread.join()


# `attnserve worker` as a process of its own, which builds nothing, is in a hurry, and may be told to die somewhere.
PROCESS = """
import functools, os, signal, sys
from attnserve import jobs
from attnserve.worker import command, worker, workflow
from attnserve.worker.build import Builder
fake, crash, format, *arguments = sys.argv[1:]
for module in (jobs, worker, workflow):
    module.JOB_FORMAT = int(format)
command.Builder = functools.partial(Builder, command=(sys.executable, "-P", "-c", fake))
command.Worker = functools.partial(
    worker.Worker, rhythm=worker.Rhythm(poll_s=0.05, beat_s=0.1, patience_s=1.0, sweep_s=0.2)
)
def dying(call, when):
    def die(*arguments, **options):
        if when == "after":
            call(*arguments, **options)
        os.kill(os.getpid(), signal.SIGKILL)
    return die
if crash:
    when, name = crash.split()
    place = workflow.Exporter if name == "_build" else workflow
    setattr(place, name, dying(getattr(place, name), when))
from attnserve.cli import main
sys.exit(main(["worker", *arguments]))
"""


@contextlib.contextmanager
def process(
    url: str, places: Places, *, name: str = "worker", crash: str = "", format: int = JOB_FORMAT
) -> Iterator[subprocess.Popen[str]]:
    """A worker as a process of its own; `crash` is "before" or "after" and the name of a step's function."""
    command = [sys.executable, "-P", "-c", PROCESS, FAKE_CHILD, crash, str(format), str(places.repository)]
    flags = ["--database-url", url, "--checkpoints", str(places.checkpoints), "--name", name]
    with subprocess.Popen([*command, *flags], stderr=subprocess.PIPE, text=True) as worker:
        try:
            yield worker
        finally:
            worker.kill()


@pytest.fixture
def places(tmp_path: Path) -> Places:
    return make_places(tmp_path)


@pytest.fixture
def url(tmp_path: Path) -> str:
    return make_url(tmp_path)


@pytest.fixture
def jobs(url: str, places: Places) -> Iterator[Jobs]:
    jobs = Jobs(url, places)
    yield jobs
    jobs.client.destroy()

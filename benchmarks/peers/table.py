"""The peers: how each is started and asked."""

from dataclasses import dataclass
from typing import Literal

from benchmarks.reference import name_reference

VARIANT = "expressive"
MODEL_NAME = name_reference(VARIANT)

Dialect = Literal["attnserve", "one", "list"]
"""What a body looks like, see `benchmarks/peers/traffic.py`."""


@dataclass(frozen=True)
class Peer:
    name: str
    environment: str
    """The folder beside this file that has its requirements.txt, and its server.py if it needs one."""
    command: tuple[str, ...]
    """Its first word is looked up in the environment; {port} and {repository} are filled in."""
    packages: tuple[str, ...]
    """Whose versions are shown; the JSON has all."""
    note: str
    is_batched: bool = False
    path: str = "/predict"
    dialect: Dialect = "one"


def _module(name: str) -> tuple[str, ...]:
    return ("python", "-m", f"benchmarks.peers.{name}.server")


def _bentoml(service: str) -> tuple[str, ...]:
    where = ("--host", "127.0.0.1", "--port", "{port}")
    return ("bentoml", "serve", f"benchmarks.peers.bentoml.server:{service}", *where)


PEERS = (
    Peer(
        name="attnserve",
        environment="attnserve",
        command=(
            *("attnserve", "serve", "{repository}", "--host", "127.0.0.1", "--port", "{port}"),
            *("--device", "cpu", "--num-threads", "1", "--log-level", "warning"),
        ),
        packages=("attnserve", "fastapi", "uvicorn", "uvloop"),
        note="its defaults: packed batches where they cost no more than their members alone; JSON of /v1, metrics on",
        is_batched=True,
        path=f"/v1/models/{MODEL_NAME}/predict",
        dialect="attnserve",
    ),
    Peer(
        name="fastapi",
        environment="fastapi",
        command=_module("fastapi"),
        packages=("fastapi", "uvicorn", "uvloop"),
        note="by hand: orjson, one run per request in a thread; no validation, no metrics, no limits",
    ),
    Peer(
        name="mosec",
        environment="mosec",
        command=_module("mosec"),
        packages=("mosec",),
        note="one worker process, orjson, one run per request; metrics on",
    ),
    Peer(
        name="mosec-batched",
        environment="mosec",
        command=_module("mosec"),
        packages=("mosec",),
        note="its dynamic batching (max_wait_time 1 ms), padded",
        is_batched=True,
    ),
    Peer(
        name="litserve",
        environment="litserve",
        command=_module("litserve"),
        packages=("litserve", "fastapi", "uvicorn", "uvloop"),
        note="one API process, one worker process, one run per request",
    ),
    Peer(
        name="litserve-batched",
        environment="litserve",
        command=_module("litserve"),
        packages=("litserve", "fastapi", "uvicorn", "uvloop"),
        note="its batching (batch_timeout 1 ms), padded",
        is_batched=True,
    ),
    Peer(
        name="bentoml",
        environment="bentoml",
        command=_bentoml("One"),
        packages=("bentoml", "uvicorn"),
        note="one worker, one run per request; metrics on",
    ),
    Peer(
        name="bentoml-batched",
        environment="bentoml",
        command=_bentoml("Padded"),
        packages=("bentoml", "uvicorn"),
        note="its adaptive batching, padded; metrics on",
        is_batched=True,
        dialect="list",
    ),
)

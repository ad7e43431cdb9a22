"""A folder of bundles without an export."""

from pathlib import Path

import pytest

from benchmarks.gpu.bundles import Bundle
from benchmarks.gpu.plan import Plan

V1 = Path(__file__).resolve().parents[2] / "bundles" / "v1"


@pytest.fixture
def bundle(tmp_path) -> Bundle:
    """A tiny model in which every variant has a layer."""
    found = Bundle(root=str(tmp_path), model="tiny", precision="float32")
    found.repository.joinpath("tiny").mkdir(parents=True)
    found.folder.symlink_to(V1)
    return found


@pytest.fixture
def plan(tmp_path) -> Plan:
    """As little as there can be."""
    return Plan(
        device="cpu",
        folder=str(tmp_path),
        proven=("tiny",),
        precisions=("float32",),
        timed=("tiny",),
        timed_precisions=("float32",),
        num_requests=20,
        num_sizes=2,
        num_replays=2,
        num_sequences=6,
        num_rounds=1,
        num_clients=2,
        tuning_seconds=0.1,
        load_seconds=2.0,
        warmup_seconds=0.1,
        compiles=False,
    )

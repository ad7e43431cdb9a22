"""The same bundles with and without kernels: both within their certificates."""

from pathlib import Path

import pytest

from attnserve.golden import read_golden, replay
from attnserve.runtime import Runtime
from tests.conftest import COMMITTED
from tests.kernels.library import build_library
from tests.kinds import list_kinds

pytestmark = pytest.mark.export


def assert_within(bundle: Path) -> None:
    golden = read_golden(bundle)
    for library in (None, build_library()):
        runtime = Runtime(bundle, num_threads=1, op_library=library)
        assert runtime.op_library == library
        report = replay(runtime, golden)
        assert report.passed, report.table()


def test_tiny(bundles: Path) -> None:
    assert_within(bundles / "tiny" / "1")


def test_the_oldest_format() -> None:
    assert_within(Path(__file__).parents[1] / "bundles" / "v1")


@pytest.mark.parametrize("name", COMMITTED)
def test_committed_models(committed_bundles: Path, name: str) -> None:
    assert_within(committed_bundles / name / "1")


@pytest.mark.parametrize("name", list_kinds())
def test_every_kind_of_model(breadth: Path, name: str) -> None:
    assert_within(breadth / name / "1")

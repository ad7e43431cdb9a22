"""A queue in memory, and a service that asks it."""

import pytest

from tests.fake_exports import FakeQueue, Service


@pytest.fixture
def queue():
    return FakeQueue()


@pytest.fixture
def make_service(tmp_path, queue):
    return lambda **options: Service(tmp_path, queue, **options)


@pytest.fixture
def service(make_service):
    return make_service()

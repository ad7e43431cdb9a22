"""Where the time of a request went."""

from attnserve.service.stages import Stages


def test_stages_of_one_name_are_added_up():
    stages = Stages()
    assert stages.describe() == ""
    stages.add("queue", 1.0, 1.25)
    stages.add("compute", 1.25, 1.5)
    stages.add("queue", 2.0, 2.0005)
    assert stages.describe() == "queue;dur=250.500, compute;dur=250.000"


def test_a_stage_ends_now_unless_told_otherwise(monkeypatch):
    monkeypatch.setattr("attnserve.service.stages.monotonic", lambda: 7.0)
    stages = Stages()
    stages.add("parse", 6.5)
    assert stages.describe() == "parse;dur=500.000"

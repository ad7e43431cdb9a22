"""Where the time of a request went."""

from attnserve.service.stages import Stage, Stages


def test_stages_of_one_name_are_added_up():
    stages = Stages()
    assert stages.describe() == ""
    stages.add("queue", 1.0, 1.25)
    stages.add("compute", 1.25, 1.5, batch_sequences=4)
    stages.add("queue", 2.0, 2.5)
    stages.add("compute", 2.5, 2.5005, batch_sequences=2)
    assert stages.describe() == "queue;dur=750.000, compute;dur=250.500"
    queue, compute = stages.all
    # In between, it was somewhere else.
    assert queue == Stage(name="queue", begin=1.0, end=2.5, seconds=0.75, count=2)
    assert (compute.begin, compute.end, compute.count, compute.batch_sequences) == (1.25, 2.5005, 2, 2)


def test_a_stage_ends_now_unless_told_otherwise(monkeypatch):
    monkeypatch.setattr("attnserve.service.stages.monotonic", lambda: 7.0)
    stages = Stages()
    stages.add("parse", 6.5)
    assert stages.describe() == "parse;dur=500.000"

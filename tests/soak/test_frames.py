"""Frames: mutations are drawn from a seed and change something, and wrong answers to them are seen."""

import json
import random

import numpy as np
import pytest

from attnserve.service.oip.request import HEADER
from soak import frames, mutations
from soak.connection import Reply

FRAMES = frames.make_frames()
PROBLEM = {"error": "x", "status": 400}


def reply(status, body, **headers):
    return Reply(status=status, headers=headers, body=body if isinstance(body, bytes) else json.dumps(body).encode())


def binary(values, *, num_bytes=None):
    raw = np.array(values, "<f4").tobytes()
    size = len(raw) if num_bytes is None else num_bytes
    entry = {"shape": [1, len(values)], "parameters": {"binary_data_size": size}}
    head = json.dumps({"outputs": [entry]}).encode()
    return reply(200, head + raw, **{HEADER.lower(): str(len(head))})


@pytest.mark.parametrize("mutation", mutations.MUTATIONS, ids=lambda mutation: mutation.__name__)
@pytest.mark.parametrize("frame", FRAMES, ids=lambda frame: frame.path)
def test_mutations_change_frames(mutation, frame):
    questions = [mutation(frame, random.Random(seed)).as_question() for seed in range(40)]
    whole = frame.as_question()
    num_changed = sum((one.body, one.headers) != (whole.body, whole.headers) for one in questions)
    # Changing a number to itself, or dropping bytes past the end, changes nothing.
    assert num_changed > 20
    again = [mutation(frame, random.Random(seed)).as_question() for seed in range(40)]
    assert [one.body for one in questions] == [one.body for one in again]


def test_the_same_seed_draws_the_same():
    first, second = (
        [mutations.mutate(frame, generator).as_question() for frame in FRAMES * 100]
        for generator in (random.Random(3), random.Random(3))
    )
    assert first == second
    # What is sent fits into lines: the server would refuse anything else before it looks at the frame.
    assert all(b"\n" not in value and b"\r" not in value for one in first for _, value in one.headers)


def test_answers_that_are_right():
    assert frames.judge(None, binary([1.0, 2.0])) is None
    assert frames.judge(None, reply(200, {"outputs": [{"shape": [1, 2], "data": [1, 2]}]})) is None
    assert frames.judge(None, reply(400, PROBLEM)) is None


@pytest.mark.parametrize(
    "answer",
    [
        reply(500, {"error": "x", "status": 500}),
        reply(502, b""),
        reply(400, b"Bad Request"),
        reply(400, {"status": 400}),
        reply(400, {"error": "x", "status": 422}),
        reply(400, PROBLEM | {"detail": "x" * 20_000}),
        reply(200, b"{}"),
        reply(200, {"outputs": [{"shape": [1, 3], "data": [1, 2]}]}),
        binary([1.0, 2.0], num_bytes=4),
        binary([1.0, 2.0], num_bytes=80),
    ],
)
def test_answers_that_are_wrong(answer):
    assert frames.judge(None, answer)


def test_other_numbers_are_seen():
    (found,) = frames.read_tensors(binary([1.0, 2.0]))
    assert frames.is_close([found], [found + 1e-6])
    assert not frames.is_close([found], [found + 1e-4])
    assert not frames.is_close([found], [found.reshape(2, 1)])
    assert not frames.is_close([found], [found, found])
    assert not frames.is_close([found * np.nan], [found])


def test_frames_that_reach_nothing():
    reached = dict.fromkeys((200, 400, 413, 415, 422), 1)
    assert frames.check_statuses(reached) == []
    assert "422" in frames.check_statuses(reached | {422: 0})[0]

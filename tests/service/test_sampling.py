"""Sampling: who is chosen, when they are measured, and whom that never delays."""

import asyncio
import json
import random
import threading
from types import SimpleNamespace

import numpy as np
import pytest
from fastapi import Response

from attnserve.interrupt import Interrupt, Interrupted
from attnserve.service import sampling
from attnserve.service.attention import captures_for, compute_arrays
from attnserve.service.idle import Idle
from attnserve.service.job import LogitsAnswer
from attnserve.service.live_heads import LiveHeads
from attnserve.service.preprocess import parse_attention
from attnserve.service.problems import Invalid
from attnserve.service.sampling import DIAGNOSTICS, MAX_WAITING, Sampler, measure
from attnserve.service.sequences import Input, Reader


class Model(SimpleNamespace):
    """So much of a model as a sample needs."""

    def __init__(self, **fields):
        super().__init__(name="here", live=LiveHeads(), **fields)

    __hash__ = object.__hash__


class Measure:
    """Stands for `measure`: goes on when it is told, and ends early when it is interrupted."""

    def __init__(self):
        self.lengths = []
        self.started = threading.Semaphore(0)
        self.release = threading.Event()
        self.interrupts = []

    def __call__(self, model, values, interrupt):
        self.lengths.append(len(values))
        self.interrupts.append(interrupt)
        self.started.release()
        assert self.release.wait(30)
        interrupt.check()
        return {
            "entropy_normalised": np.full((1, 1), 0.5),
            "sink": np.full((1, 1), 0.25),
            "collapse": np.full(1, 0.75),
        }


@pytest.fixture
def work(monkeypatch):
    stub = Measure()
    monkeypatch.setattr(sampling, "measure", stub)
    return stub


def make_sampler(ratio=1.0, *, idle=None, max_length=8, seed=0) -> Sampler:
    return Sampler(ratio, max_length=max_length, idle=idle or Idle(), generator=random.Random(seed))


def asked(*lengths: int) -> SimpleNamespace:
    return SimpleNamespace(inputs=[Input(values=np.zeros(length, np.int64)) for length in lengths])


async def send(sampler: Sampler, model: Model, *lengths: int) -> Response:
    """What happens to a request with sequences of these lengths."""
    response = sampler.offer(model, asked(*lengths), Response())
    if response.background is not None:
        await response.background()
    return response


async def until_over(sampler: Sampler) -> None:
    while sampler._working is not None and not sampler._working.done():
        await asyncio.sleep(0)


def test_nothing_is_sampled_unless_somebody_wants_it():
    assert make_sampler(0.0).offer(Model(), asked(4), Response()).background is None


def test_chance_decides_and_takes_its_part():
    sampler, model = make_sampler(0.1), Model()
    chosen = sum(sampler.offer(model, asked(4), Response()).background is not None for _ in range(10_000))
    assert 900 < chosen < 1100
    # Any sequence of a request may be the one.
    sampler = make_sampler()
    backgrounds = [sampler.offer(model, asked(2, 3, 4), Response()).background for _ in range(100)]
    assert {len(background.args[1]) for background in backgrounds} == {2, 3, 4}


def test_it_is_measured_when_the_answer_is_sent_and_nobody_waits(work):
    async def conversation():
        idle = Idle()
        sampler, model = make_sampler(idle=idle), Model()
        work.release.set()
        response = sampler.offer(model, asked(4), Response())
        await asyncio.sleep(0)
        assert work.lengths == []
        with idle.busy():
            await response.background()
            for _ in range(10):
                await asyncio.sleep(0)
            assert work.lengths == []
        await until_over(sampler)
        sampler.close()
        return model

    model = asyncio.run(conversation())
    assert work.lengths == [4]
    assert model.live.outcomes == {"measured": 1}
    assert model.live.totals["entropy_normalised"].tolist() == [[0.5]]


def test_whoever_comes_ends_it(work):
    async def conversation():
        idle = Idle()
        sampler, model = make_sampler(idle=idle), Model()
        await send(sampler, model, 4)
        await asyncio.to_thread(work.started.acquire)
        (interrupt,) = work.interrupts
        assert not interrupt.is_set
        with idle.busy():
            # Before anything is done for the request that has come.
            assert interrupt.is_set
            assert interrupt.options.terminate
            work.release.set()
            await until_over(sampler)
        sampler.close()
        return model

    model = asyncio.run(conversation())
    assert model.live.outcomes == {"interrupted": 1}
    assert not model.live.totals


def test_in_a_busy_service_the_oldest_go(work):
    async def conversation():
        idle = Idle()
        sampler, model = make_sampler(idle=idle, max_length=100), Model()
        work.release.set()
        with idle.busy():
            for length in range(2, 2 + MAX_WAITING + 3):
                await send(sampler, model, length)
            assert work.lengths == []
        await until_over(sampler)
        sampler.close()
        return model

    model = asyncio.run(conversation())
    assert work.lengths == list(range(5, 5 + MAX_WAITING))
    assert model.live.outcomes == {"displaced": 3, "measured": MAX_WAITING}


@pytest.mark.parametrize("length", [1, 9])
def test_what_is_too_short_or_too_long_is_counted_and_left_out(work, length):
    model = Model()
    asyncio.run(send(make_sampler(max_length=8), model, length))
    assert model.live.outcomes == {"length": 1}
    assert work.lengths == []


def test_a_model_that_is_gone_takes_its_samples_with_it(work):
    async def conversation():
        idle = Idle()
        sampler = make_sampler(idle=idle)
        with idle.busy():
            await send(sampler, Model(), 4)
        await until_over(sampler)
        sampler.close()

    asyncio.run(conversation())
    assert work.lengths == []


def test_one_that_fails_does_not_end_the_next(monkeypatch, caplog):
    failures = [RuntimeError("broken")]

    def fail_once(*_):
        if failures:
            raise failures.pop()
        return {name: np.zeros((1, 1)) for name in ("entropy_normalised", "sink")} | {"collapse": np.zeros(1)}

    monkeypatch.setattr(sampling, "measure", fail_once)

    async def conversation():
        sampler, model = make_sampler(), Model()
        await send(sampler, model, 4)
        await send(sampler, model, 4)
        await until_over(sampler)
        sampler.close()
        return model

    assert asyncio.run(conversation()).live.outcomes == {"failed": 1, "measured": 1}
    assert "a sample of 4 steps of here cannot be measured" in caplog.text


def test_the_end_of_the_service_ends_it(work):
    async def conversation():
        sampler, model = make_sampler(), Model()
        await send(sampler, model, 4)
        await asyncio.to_thread(work.started.acquire)
        sampler.close()
        await until_over(sampler)
        assert work.interrupts[0].is_set
        work.release.set()

    asyncio.run(conversation())


class Engine:
    """Answers as `answer_randomly` does, beside its batches."""

    def __init__(self, weighing, answers):
        self.runtime = SimpleNamespace(weighing=weighing)
        self.answers = answers
        self.jobs = []

    def run_aside(self, jobs, interrupt):
        self.jobs += jobs
        interrupt.check()
        return [LogitsAnswer(logits=np.zeros((0, 10), np.float32), captures=answer.captures) for answer in self.answers]


@pytest.fixture
def route(make_manifest, weighing, answer_randomly):
    """A model, a sequence, and what the attention route answers about it."""
    manifest = make_manifest()
    body = {"sequences": [[1, 2, 3, 4, 5]], "diagnostics": list(DIAGNOSTICS)}
    request = parse_attention(json.dumps(body).encode(), Reader(manifest))
    answers = answer_randomly(request, manifest)
    model = Model(manifest=manifest, reader=Reader(manifest), engine=Engine(weighing, answers))
    return model, request, compute_arrays(weighing, manifest.layers, request, answers)[0]


def test_numbers_are_those_of_the_attention_route(route):
    model, request, arrays = route
    measures = measure(model, request.inputs[0].values, Interrupt())
    assert measures.keys() == arrays.keys()
    for name, array in arrays.items():
        np.testing.assert_array_equal(measures[name], array)
    (job,) = model.engine.jobs
    assert job.captures == captures_for(model.manifest, request.attention)
    # Nobody asked for a prediction.
    assert len(job.positions) == 0


def test_it_ends_between_two_blocks_of_rows(route):
    model, request, _ = route
    interrupt, run = Interrupt(), model.engine.run_aside

    def run_and_interrupt(jobs, interrupt):
        answers = run(jobs, interrupt)
        interrupt.set()
        return answers

    model.engine.run_aside = run_and_interrupt
    with pytest.raises(Interrupted):
        measure(model, request.inputs[0].values, interrupt)


def test_what_is_not_finite_is_no_measure(route):
    model, request, _ = route
    name = next(iter(model.engine.answers[0].captures))
    model.engine.answers[0].captures[name][0] = np.inf
    with pytest.raises(Invalid):
        measure(model, request.inputs[0].values, Interrupt())

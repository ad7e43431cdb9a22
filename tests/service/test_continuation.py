"""Going on: which token comes next, and who may ask for how many. The model is the test's."""

import asyncio
import json
import zlib

import numpy as np
import pytest

from attnserve.service.continuation import MAX_SEED, Continuation, Generated, choose, continue_sequences
from attnserve.service.job import Answer, LogitsAnswer
from attnserve.service.prediction import softmax
from attnserve.service.preprocess import parse_attention, parse_predict
from attnserve.service.problems import Invalid, TooLarge
from attnserve.service.sequences import Reader
from attnserve.top import choose_top

SIZE = 12


def plan(**fields) -> Continuation:
    return Continuation(**{"num_tokens": 8, "temperature": 0.0, "top_k": SIZE, "seed": 0, **fields})


def say(ids) -> np.ndarray:
    """Logits that depend on the whole sequence and on nothing else."""
    return np.random.default_rng(zlib.crc32(np.asarray(ids, np.int64).tobytes())).normal(size=SIZE).astype(np.float32)


def choose_from(logits, continuation, generator) -> Generated:
    return choose(choose_top(logits[None], continuation.num_candidates), continuation, generator)


async def answer(jobs) -> list[Answer]:
    for job in jobs:
        # Only the last step says what comes next.
        assert job.positions.tolist() == [len(job.sequence) - 1]
        assert (job.sequence.dtype, job.captures) == (np.int64, frozenset())
    return [LogitsAnswer(logits=say(job.sequence)[None], captures={}) for job in jobs]


def go_on(sequences, **fields) -> list[list[int]]:
    """Ids added to each sequence."""

    async def collect():
        arrays = [np.array(ids, np.int64) for ids in sequences]
        return [tokens async for tokens in continue_sequences(answer, arrays, plan(**fields))]

    return [[token.id for token in column] for column in zip(*asyncio.run(collect()), strict=True)]


def test_greedy_is_the_likeliest_step_by_step():
    sequences = [[1, 2, 3], [4], [1, 2, 3, 5]]
    for ids, added in zip(sequences, go_on(sequences), strict=True):
        grown = list(ids)
        for _ in range(8):
            grown.append(int(say(grown).argmax()))
        assert added == grown[len(ids) :]


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_logit_and_probability_are_those_of_the_token_among_all(temperature):
    logits = say([7])
    chosen = choose_from(logits, plan(temperature=temperature, top_k=3), np.random.default_rng(5))
    assert chosen.logit == logits[chosen.id]
    assert chosen.probability == softmax(logits[None])[0, chosen.id]
    # As prediction entries are: what orjson prints exactly.
    assert (type(chosen.id), type(chosen.logit), type(chosen.probability)) == (int, np.float32, np.float32)


@pytest.mark.parametrize("size", [5, 3000])
def test_of_equal_logits_the_smaller_id_comes_first(size):
    logits = np.zeros(size, np.float32)
    logits[[1, 3]] = 1.5
    assert choose_from(logits, plan(), np.random.default_rng(0)).id == 1
    drawn = {choose_from(logits, plan(temperature=1e9, top_k=3), np.random.default_rng(seed)).id for seed in range(200)}
    assert drawn == {0, 1, 3}


# The chance that a right sampler fails is 1 in 10,000 for each; the seed makes it always or never.
@pytest.mark.parametrize(("temperature", "top_k", "critical"), [(1.0, 12, 37.4), (0.5, 12, 37.4), (3.0, 4, 21.1)])
def test_tokens_are_drawn_as_often_as_the_temperature_says(temperature, top_k, critical):
    logits = (np.arange(SIZE) * 7 % SIZE / 4).astype(np.float32)
    generator, count = np.random.default_rng(0), 20_000
    seen = np.bincount(
        [choose_from(logits, plan(temperature=temperature, top_k=top_k), generator).id for _ in range(count)],
        minlength=SIZE,
    )
    kept = np.argsort(-logits, kind="stable")[:top_k]
    weights = np.exp(logits[kept].astype(float) / temperature)
    expected = count * weights / weights.sum()
    assert seen.sum() == seen[kept].sum() == count
    assert ((seen[kept] - expected) ** 2 / expected).sum() < critical


@pytest.mark.parametrize("temperature", [0.3, 1, 40.0])
def test_one_candidate_is_the_likeliest(temperature):
    sequences = [[1], [2, 3]]
    assert go_on(sequences, temperature=float(temperature), top_k=1, seed=9) == go_on(sequences)


def test_a_seed_gives_the_same_tokens_whoever_is_beside():
    mine = [5, 6, 7]
    (alone,) = go_on([mine], temperature=1.0, seed=3)
    for others in ([], [[1]], [[1, 2], [9], [3]]):
        for place in range(len(others) + 1):
            together = go_on([*others[:place], mine, *others[place:]], temperature=1.0, seed=3)
            assert together[place] == alone


def test_seeds_differ():
    assert len({tuple(go_on([[5]], temperature=1.0, seed=seed)[0]) for seed in range(20)}) == 20


@pytest.mark.parametrize("temperature", [5e-324, 1e-300, 1e-30, 1e30, 1e300, np.finfo(float).max])
@pytest.mark.parametrize("scale", [1.0, 3e38])
def test_extreme_temperatures_overflow_nothing(temperature, scale):
    # Warnings are errors here.
    logits = np.array([-1, 1, 0.5, 1], np.float32) * np.float32(scale)
    drawn = {
        choose_from(logits, plan(temperature=temperature, top_k=4), np.random.default_rng(n)).id for n in range(99)
    }
    assert drawn == ({1, 3} if temperature < 1 or temperature < scale / 100 else {0, 1, 2, 3})


def test_a_draw_at_the_very_end_is_a_token():
    class Last:
        def random(self):
            return np.nextafter(1.0, 0)

    assert choose_from(say([1]), plan(temperature=1e300), Last()).id == int(say([1]).argmin())


@pytest.mark.parametrize("size", [7, 20_000])
def test_large_steps_are_chosen_off_the_event_loop_and_the_same(size, monkeypatch):
    logits = np.random.default_rng(0).normal(size=size).astype(np.float32)
    threaded = []
    to_thread = asyncio.to_thread
    monkeypatch.setattr(asyncio, "to_thread", lambda *call: threaded.append(1) or to_thread(*call))

    async def same(jobs):
        return [LogitsAnswer(logits=logits[None], captures={}) for _ in jobs]

    async def collect():
        options = plan(num_tokens=3, temperature=1.0, top_k=size)
        return [tokens async for tokens in continue_sequences(same, [np.array([1])] * 2, options)]

    generator = np.random.default_rng(0)
    expected = [choose_from(logits, plan(temperature=1.0, top_k=size), generator).id for _ in range(3)]
    assert [[token.id for token in tokens] for tokens in asyncio.run(collect())] == [[index] * 2 for index in expected]
    assert len(threaded) == (3 if size > 7 else 0)


def test_who_stops_listening_stops_the_work():
    asked = []

    async def submit(jobs):
        asked.append(len(jobs))
        return await answer(jobs)

    async def listen():
        steps = continue_sequences(submit, [np.array([1])], plan(num_tokens=100))
        async for _ in steps:
            if len(asked) == 3:
                break
        await steps.aclose()

    asyncio.run(listen())
    assert asked == [1, 1, 1]


def ask(manifest, how=parse_predict, **fields):
    document = {"sequences": [[1, 2, 3], [4] * 7], "continue": 2, **fields}
    return how(json.dumps(document).encode(), Reader(manifest))


def test_what_is_not_said_has_defaults(make_manifest):
    asked = ask(make_manifest())
    assert (asked.top_k, asked.attention) == (10, None)
    assert [steps.tolist() for steps in asked.positions] == [[2], [6]]
    continuation = asked.continuation
    assert (continuation.num_tokens, continuation.temperature, continuation.top_k) == (2, 0.0, 10)
    assert 0 <= continuation.seed < MAX_SEED
    assert len({ask(make_manifest()).continuation.seed for _ in range(20)}) == 20


def test_what_is_said_is_taken(make_manifest):
    said = {"temperature": 2e-1, "top_k": 3, "seed": MAX_SEED - 1, "attention": None, "positions": None}
    continuation = ask(make_manifest(), **said, **{"continue": 93}).continuation
    assert continuation == plan(num_tokens=93, temperature=0.2, top_k=3, seed=MAX_SEED - 1)
    assert type(ask(make_manifest(), temperature=1).continuation.temperature) is float
    assert ask(make_manifest(), seed=None).continuation.seed is not None


REFUSED = {
    "nothing": ({"continue": 0}, "continue", "expected an integer >= 1, the number of tokens, got the number 0"),
    "negative": ({"continue": -1}, "continue", "got the number -1"),
    "true": ({"continue": True}, "continue", "got true"),
    "false": ({"continue": False}, "continue", "got false"),
    "1.0": ({"continue": 1.0}, "continue", "got the number 1.0"),
    "1e2": ({"continue": 1e2}, "continue", "got the number 100.0"),
    "a string": ({"continue": "1"}, "continue", "got the string '1'"),
    "a list": ({"continue": [1]}, "continue", "got a list"),
    "an object": ({"continue": {}}, "continue", "got an object"),
    "too many": ({"continue": 94}, "continue", "sequences[1] has 7 of at most 100 steps: expected at most 93 more"),
    "2**63": ({"continue": 2**63}, "continue", "expected at most 93 more, got the number 9223372036854775808"),
    "2**70": ({"continue": 2**70}, "continue", "expected an integer >= 1"),
    "no sequences": ({"sequences": []}, "sequences", "expected at least one"),
    "temperature negative": ({"temperature": -1e-9}, "temperature", "expected a finite number >= 0"),
    "temperature true": ({"temperature": True}, "temperature", "got true"),
    "temperature a string": ({"temperature": "1"}, "temperature", "got the string '1'"),
    "seed -1": ({"seed": -1}, "seed", f"expected an integer from 0 to {MAX_SEED - 1}, got the number -1"),
    "seed 1.0": ({"seed": 1.0}, "seed", "got the number 1.0"),
    "seed 2**53": ({"seed": MAX_SEED}, "seed", "got the number 9007199254740992"),
    "seed 2**70": ({"seed": 2**70}, "seed", "got the number 1.18"),
    "seed true": ({"seed": True}, "seed", "got true"),
    "seed a string": ({"seed": "x"}, "seed", "got the string 'x'"),
    "top_k 0": ({"top_k": 0}, "top_k", "expected an integer from 1 to 10 (the vocabulary)"),
    "top_k 11": ({"top_k": 11}, "top_k", "got the number 11"),
    "positions": ({"positions": "last"}, "positions", "expected none together with continue"),
    "attention": ({"attention": {}}, "attention", "expected none together with continue"),
    "a field more": ({"max_tokens": 1}, "max_tokens", "unknown field; expected one of sequences,"),
    "temperature alone": ({"continue": None, "temperature": 1}, "temperature", "only together with continue"),
    "seed alone": ({"continue": None, "seed": 1}, "seed", "only together with continue, got the number 1"),
}


@pytest.mark.parametrize(("fields", "field", "message"), REFUSED.values(), ids=REFUSED)
def test_what_is_refused_is_named(make_manifest, fields, field, message):
    with pytest.raises(Invalid) as caught:
        ask(make_manifest(), **fields)
    (fault,) = caught.value.faults
    assert fault.field == field
    assert message in fault.message


def test_null_continues_nothing(make_manifest):
    asked = ask(make_manifest(), **{"continue": None, "positions": "all"})
    assert asked.continuation is None
    assert sum(map(len, asked.positions)) == 10


@pytest.mark.parametrize("task", ["classify_token", "classify_sequence"])
def test_only_models_of_the_next_token_go_on(make_manifest, task):
    manifest = make_manifest(task=task, num_classes=3, pooling="last" if task == "classify_sequence" else None)
    with pytest.raises(Invalid, match=f"continue: expected none: this model's task is {task}, not next_token"):
        ask(manifest)


def test_the_route_of_attention_does_not_go_on(make_manifest):
    with pytest.raises(Invalid, match="continue: unknown field"):
        ask(make_manifest(), parse_attention)


def test_the_tokens_of_all_sequences_are_counted(make_manifest):
    many = [[1]] * 8192
    assert ask(make_manifest(), sequences=many, **{"continue": 8}).continuation.num_tokens == 8
    with pytest.raises(TooLarge, match="continue: sequences x continue may be at most 65536, got 73728"):
        ask(make_manifest(), sequences=many, **{"continue": 9})

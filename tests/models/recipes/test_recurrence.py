import itertools
import re

import numpy as np
import pytest

from attnserve.models.recipes.recurrence import NT, Lengths, Mixture, batches


@pytest.mark.parametrize(("symbols", "delay"), [(2, 1), (2, 5), (8, 8), (3, 17)])
def test_every_token_after_the_start_follows(symbols: int, delay: int) -> None:
    tokens = NT(symbols=symbols, delay=delay).sample(np.random.default_rng(0), 5, 40)

    assert tokens.shape == (5, 40)
    assert set(np.unique(tokens)) <= set(range(symbols))
    for sequence in tokens.tolist():
        for step in range(delay, 40):
            assert sequence[step] == (sequence[step - 1] + sequence[step - delay]) % symbols


def test_two_symbols_of_delay_four_have_period_fifteen() -> None:
    """x(t) = x(t-1) xor x(t-4): a maximal shift register, every start but zero on one cycle."""
    tokens = NT(symbols=2, delay=4).extend(np.array([[0, 0, 0, 1]]), 34)[0]

    assert (tokens[:15] != tokens[1:16]).any()
    np.testing.assert_array_equal(tokens[:19], tokens[15:])


def test_extending_goes_on_from_what_is_given() -> None:
    task = NT(symbols=5, delay=3)
    tokens = task.sample(np.random.default_rng(1), 4, 30)

    np.testing.assert_array_equal(task.extend(tokens[:, :11], 30), tokens)
    # Also from a token that does not follow: what a model got wrong is where it goes on from.
    wrong = tokens[:, :11].copy()
    wrong[:, 10] = (wrong[:, 10] + 1) % 5
    np.testing.assert_array_equal(task.extend(wrong, 12)[:, 11], (wrong[:, 10] + wrong[:, 8]) % 5)


def test_batches_depend_on_the_seed_alone() -> None:
    task, lengths = NT(symbols=8, delay=4), Lengths(shortest=10, longest=40, curriculum=3, batch=4, max_tokens=100)
    # The global random states are no part of it.
    first, second, other = (
        list(itertools.islice(batches(task, lengths, np.random.default_rng(seed)), 6)) for seed in (7, 7, 8)
    )

    assert all(a.inputs.equal(b.inputs) and a.targets.equal(b.targets) for a, b in zip(first, second, strict=True))
    assert not all(a.inputs.equal(b.inputs) for a, b in zip(first, other, strict=True))
    starts = {tuple(batch.inputs[:4].tolist()) for batch in first}
    assert len(starts) == 6, "every step draws fresh starts"


def test_batches_score_what_can_be_predicted() -> None:
    task = NT(symbols=7, delay=3)
    batch = task.batch(np.random.default_rng(0), 2, 5)

    assert batch.slots.tolist() == [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]]
    assert batch.positions.tolist() == [0, 1, 2, 3, 4] * 2
    assert batch.rows.tolist() == [2, 3, 4, 7, 8, 9]
    for row, target in zip(batch.rows.tolist(), batch.targets.tolist(), strict=True):
        assert target == (batch.inputs[row] + batch.inputs[row - 2]) % 7


def test_lengths_grow_and_batches_shrink() -> None:
    lengths, generator = (
        Lengths(shortest=10, longest=160, curriculum=100, batch=32, max_tokens=640),
        np.random.default_rng(0),
    )
    early = [lengths.draw(generator, 0) for _ in range(200)]
    late = [lengths.draw(generator, 100) for _ in range(200)]

    assert min(early) == 10
    assert max(early) <= 11
    assert min(late) < 15
    assert 140 < max(late) <= 160
    for batch in itertools.islice(batches(NT(symbols=2, delay=1), lengths, generator), 50):
        num_sequences, length = batch.slots.shape
        assert num_sequences == min(32, 640 // length)


@pytest.mark.parametrize(("symbols", "delay", "field"), [(1, 3, "symbols"), (3, 0, "delay")])
def test_no_task(symbols: int, delay: int, field: str) -> None:
    with pytest.raises(ValueError, match=re.escape(f"{field}: expected an integer >=")):
        NT(symbols=symbols, delay=delay)


def test_labels_are_no_digits() -> None:
    assert NT(symbols=3, delay=1).labels == ("s0", "s1", "s2")


def test_a_mixture_draws_a_delay_per_sequence() -> None:
    task = Mixture(symbols=5, delays=(2, 4))
    batch = task.batch(np.random.default_rng(0), 40, 16)

    tokens = batch.inputs.view(40, 16).numpy()
    follows = {
        delay: (tokens == NT(symbols=5, delay=delay).extend(tokens[:, :delay], 16)).all(axis=1) for delay in (2, 4)
    }
    assert (follows[2] | follows[4]).all()
    assert 10 < follows[2].sum() < 30
    # From where both delays can be told apart.
    assert batch.rows.view(40, -1)[0].tolist() == list(range(7, 16))
    assert task.labels == ("s0", "s1", "s2", "s3", "s4")


@pytest.mark.parametrize("delays", [(), (3,), (3, 3)])
def test_no_mixture(delays: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"^delays: expected two or more different ones, got"):
        Mixture(symbols=5, delays=delays)


def test_more_tokens_may_be_given_than_the_delay() -> None:
    batch = NT(symbols=7, delay=3, given=4).batch(np.random.default_rng(0), 2, 5)

    assert batch.rows.tolist() == [3, 4, 8, 9]

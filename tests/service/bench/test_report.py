"""Reports: percentiles of known samples, and a client that was the slow one."""

import random

import pytest

from attnserve.service.bench.load import Outcome
from attnserve.service.bench.report import Window, format_table, summarise, take_percentiles


def make_outcome(due_s, *, latency_ms=5.0, lag_ms=0.0, status=200, error=None, **server_ms):
    return Outcome(
        due_s=due_s,
        sent_s=due_s + lag_ms / 1000,
        ended_s=due_s + latency_ms / 1000,
        status=None if error else status,
        error=error,
        server_ms=server_ms,
    )


def make_summary(outcomes, *, deadline_ms=None, is_open=True, client_cpu=0.1):
    window = Window(start_s=1, end_s=11)
    return summarise(outcomes, window, deadline_ms=deadline_ms, is_open=is_open, client_cpu=client_cpu)


@pytest.mark.parametrize(
    ("num", "expected"),
    [
        (1, [1, 1, 1, 1, 1, 1]),
        (2, [1, 2, 2, 2, 2, 2]),
        (10, [5, 9, 10, 10, 10, 10]),
        (100, [50, 90, 95, 99, 100, 100]),
        (1000, [500, 900, 950, 990, 999, 1000]),
        (10_000, [5000, 9000, 9500, 9900, 9990, 10_000]),
    ],
)
def test_percentiles_are_values_that_were_measured(num, expected):
    values = list(range(1, num + 1))
    random.Random(0).shuffle(values)
    assert list(take_percentiles(values).values()) == expected


def test_nothing_has_no_percentiles():
    assert take_percentiles([]) is None


def test_a_window_holds_its_start_and_not_its_end():
    summary = make_summary([make_outcome(moment) for moment in (0.5, 1, 2, 10.9, 11)])
    assert (summary.num_offered, summary.offered_per_s) == (3, 0.3)


def test_answers_per_second_are_those_that_came_in_meanwhile():
    early, late = make_outcome(0.5, latency_ms=1000), make_outcome(10.9, latency_ms=1000)
    summary = make_summary([early, make_outcome(5), make_outcome(6, status=503), late])
    assert summary.num_answered == 2
    assert summary.answered_per_s == 0.2


def test_goodput_is_what_came_in_time():
    ends = [make_outcome(2, latency_ms=latency) for latency in (9, 11, 50)] + [
        make_outcome(2, status=429, latency_ms=1)
    ]
    assert make_summary(ends, deadline_ms=11.5).goodput_per_s == 0.2
    assert make_summary(ends).goodput_per_s is None


def test_the_server_s_own_times_are_kept_in_its_order():
    ends = [make_outcome(2, queue=1.0, compute=2.0), make_outcome(2, queue=3.0), make_outcome(2, status=504, queue=9.0)]
    summary = make_summary(ends)
    assert list(summary.server_ms) == ["queue", "compute"]
    assert summary.server_ms["queue"]["max"] == 3
    assert summary.server_ms["compute"]["p50"] == 2


@pytest.mark.parametrize(
    ("latency_ms", "lag_ms", "found"),
    [
        (3, 0.9, None),
        (3, 1.1, "p50 of its lag is 1.1 ms, of latency 3.0 ms"),
        (100, 9, None),
        (100, 11, "p50 of its lag is 11.0 ms, of latency 100.0 ms"),
    ],
)
def test_lag_is_a_fault_where_it_is_much_of_the_latency(latency_ms, lag_ms, found):
    summary = make_summary([make_outcome(2, latency_ms=latency_ms, lag_ms=lag_ms)] * 100)
    assert summary.faults == (() if found is None else (found,))


def test_lag_of_a_few_is_a_fault_too():
    ends = [make_outcome(2)] * 98 + [make_outcome(2, latency_ms=9, lag_ms=6)] * 2
    assert make_summary(ends).faults == ("p99 of its lag is 6.0 ms, of latency 9.0 ms",)


def test_lag_needs_no_answers():
    ends = [make_outcome(2, error="connect", latency_ms=9, lag_ms=6)]
    assert make_summary(ends).faults == ("p50 of its lag is 6.0 ms",)


def test_a_closed_loop_is_never_late_but_may_be_busy():
    ends = [make_outcome(2, lag_ms=100)]
    assert make_summary(ends, is_open=False).faults == ()
    assert make_summary(ends, is_open=False, client_cpu=0.97).faults == ("it used 0.97 of the one core it can use",)


def test_a_client_without_sockets_is_at_fault():
    (fault,) = make_summary([make_outcome(2, error="sockets")]).faults
    assert fault == "it had no socket left for 1 requests (ulimit -n)"


def test_the_table():
    ends = [make_outcome(2, latency_ms=5, queue=1.25, compute=3.0)] * 6
    ends += [make_outcome(2, status=429), make_outcome(3, error="timeout", latency_ms=30_000)]
    assert format_table(make_summary(ends, deadline_ms=50)).splitlines() == [
        "                  requests     share     per s",
        "offered                  8   100.00%       0.8",
        "answered 200             6    75.00%       0.6",
        "  goodput                6    75.00%       0.6",
        "status 429               1    12.50%",
        "timeout                  1    12.50%",
        "",
        "milliseconds           p50       p90       p95       p99     p99.9       max",
        "latency of 200        5.00      5.00      5.00      5.00      5.00      5.00",
        "  queue               1.25      1.25      1.25      1.25      1.25      1.25",
        "  compute             3.00      3.00      3.00      3.00      3.00      3.00",
        "lag                   0.00      0.00      0.00      0.00      0.00      0.00",
    ]


def test_the_table_begins_with_what_is_wrong_with_it():
    first, *_ = format_table(make_summary([make_outcome(2, lag_ms=4)])).splitlines()
    assert first == "!! THE CLIENT COULD NOT KEEP UP: p50 of its lag is 4.0 ms, of latency 5.0 ms"


def test_a_run_without_requests_has_a_table():
    assert format_table(make_summary([])).splitlines()[1:] == [
        "offered                  0     0.00%       0.0",
        "answered 200             0     0.00%       0.0",
    ]

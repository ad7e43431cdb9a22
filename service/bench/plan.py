"""Everything that is drawn before a run: when requests are due, how long they are, what is in them."""

from dataclasses import dataclass

import numpy as np

from attnserve.service.bench.lengths import draw_lengths, parse_lengths
from attnserve.service.bench.options import LoadOptions
from attnserve.service.bench.schedule import draw_arrivals
from attnserve.service.bench.target import Target, make_bodies

# A closed loop has no schedule that says how many requests there will be.
NUM_CLOSED_BODIES = 4096


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A run, ready to be sent."""

    arrivals_s: tuple[float, ...]
    """When requests are due, in seconds since the start; none of a closed loop."""
    bodies: tuple[bytes, ...]
    """Sent in turn."""
    shortest: int
    mean_length: float
    longest: int
    """Of the sequences in `bodies`, in steps, as the two above."""
    num_cut: int
    """Lengths that were drawn above the model's max_length."""


def draw_plan(options: LoadOptions, target: Target) -> Plan:
    """Draw a run; the same options of the same model give the same run.

    Raises:
        ValueError: lengths that the model does not take.
    """
    # A generator each: with other lengths the same requests are due at the same times.
    of_arrivals, of_lengths, of_inputs = np.random.default_rng(options.seed).spawn(3)
    arrivals = np.empty(0)
    if options.num_connections is None:
        arrivals = draw_arrivals(options.arrivals, rate=options.rate, seconds=options.seconds, generator=of_arrivals)
    # Of a schedule without a request, too, something can be said about lengths.
    num_bodies = NUM_CLOSED_BODIES if options.num_connections is not None else max(1, len(arrivals))
    drawn = draw_lengths(
        None if options.lengths is None else parse_lengths(options.lengths),
        shape=(num_bodies, options.num_sequences),
        max_length=target.max_length,
        generator=of_lengths,
    )
    bodies = make_bodies(target, drawn.lengths, of_inputs)
    sent = drawn.lengths[: len(bodies)]
    return Plan(
        arrivals_s=tuple(arrivals.tolist()),
        bodies=tuple(bodies),
        shortest=int(sent.min()),
        mean_length=float(sent.mean()),
        longest=int(sent.max()),
        num_cut=drawn.num_cut,
    )

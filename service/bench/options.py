"""What a load is: options of `attnserve bench --url`, checked."""

import argparse
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from attnserve.address import API_KEY, check_api_key, check_url
from attnserve.service.bench.lengths import FORMS, parse_lengths
from attnserve.service.bench.schedule import ARRIVALS, Arrivals
from attnserve.service.deadline import MAX_TIMEOUT_MS

MAX_REQUESTS = 10_000_000
DAY_S = 24 * 3600


@dataclass(frozen=True, kw_only=True)
class LoadOptions:
    """A load.

    Raises:
        ValueError: names the flag, what was expected and what came.
    """

    url: str
    model: str
    api_key: str = field(default="", repr=False)
    """Empty: none is sent."""
    rate: float = 10.0
    """Requests per second, of an open loop."""
    arrivals: Arrivals = "poisson"
    num_connections: int | None = None
    """Of a closed loop; None is an open one."""
    duration_s: float = 10.0
    warmup_s: float = 2.0
    """Before `duration_s`; its requests are sent and not counted."""
    timeout_s: float = 30.0
    deadline_ms: float | None = None
    lengths: str | None = None
    """As on the command line; None is up to 256 steps or the model's max_length."""
    num_sequences: int = 1
    """In each request."""
    seed: int = 0

    def __post_init__(self) -> None:
        check_url(self.url)
        if not self.model:
            raise ValueError("--model: expected the name of a model, got none")
        check_api_key(self.api_key)
        if self.lengths is not None:
            parse_lengths(self.lengths)
        _check_range("--rate", self.rate, above=0)
        _check_range("--duration", self.duration_s, above=0, most=DAY_S)
        _check_range("--warmup", self.warmup_s, least=0, most=DAY_S)
        _check_range("--timeout-s", self.timeout_s, above=0, most=DAY_S)
        _check_range("--sequences", self.num_sequences, least=1)
        _check_range("--seed", self.seed, least=0)
        if self.deadline_ms is not None:
            _check_range("--deadline-ms", self.deadline_ms, above=0, most=MAX_TIMEOUT_MS)
        if self.num_connections is not None:
            _check_range("--closed", self.num_connections, least=1, most=MAX_REQUESTS)
        elif self.rate * self.seconds > MAX_REQUESTS:
            got = f"{self.rate:g}/s for {self.seconds:g} s"
            raise ValueError(f"--rate: expected at most {MAX_REQUESTS:,} requests in a run, got {got}")

    @property
    def seconds(self) -> float:
        """How long requests are sent."""
        return self.warmup_s + self.duration_s


def add_load_arguments(parser: argparse.ArgumentParser) -> None:
    """Options of a load. What is not given is not in the namespace, so that a load option beside a bundle is seen."""
    group = parser.add_argument_group("a running service, with --url")

    def add(flag: str, name: str, help_text: str, **settings: Any) -> None:
        group.add_argument(flag, dest=name, default=argparse.SUPPRESS, help=help_text, **settings)

    number: dict[str, Any] = {"type": float, "metavar": "X"}
    count: dict[str, Any] = {"type": int, "metavar": "N"}
    add("--model", "model", "its name; needed", metavar="NAME")
    add("--rate", "rate", f"requests per second (default: {LoadOptions.rate:g})", **number)
    add(
        "--arrivals",
        "arrivals",
        "when requests are due, drawn before the run: as of many clients, or evenly (default: poisson)",
        choices=ARRIVALS,
    )
    add(
        "--closed",
        "num_connections",
        "instead of a rate: N connections, each asking as soon as it is answered",
        **count,
    )
    add("--duration", "duration_s", f"seconds that are measured (default: {LoadOptions.duration_s:g})", **number)
    add("--warmup", "warmup_s", f"seconds before them that are not (default: {LoadOptions.warmup_s:g})", **number)
    add(
        "--lengths",
        "lengths",
        f"steps of a sequence: {FORMS} (default: 1-256 or what the model takes)",
        metavar="STEPS",
    )
    add("--sequences", "num_sequences", f"sequences per request (default: {LoadOptions.num_sequences})", **count)
    add("--deadline-ms", "deadline_ms", "sent as Timeout-Ms; answers within it are goodput (default: none)", **number)
    add(
        "--timeout-s",
        "timeout_s",
        f"give a request up so long after it was due (default: {LoadOptions.timeout_s:g})",
        **number,
    )
    add("--seed", "seed", f"of arrivals, lengths and inputs (default: {LoadOptions.seed})", **count)
    add(
        "--api-key",
        "api_key",
        f"sent as Authorization: Bearer; {API_KEY} does not show in the process list",
        metavar="KEY",
    )
    group.add_argument("--quiet", action="store_true", help="no progress bar")


def list_given(parsed: argparse.Namespace) -> list[str]:
    """Fields of a load that the command line names, `url` aside."""
    return [each.name for each in fields(LoadOptions) if each.name != "url" and hasattr(parsed, each.name)]


def read_options(parsed: argparse.Namespace, environment: Mapping[str, str] = os.environ) -> LoadOptions:
    """The load that the command line asks for.

    Raises:
        ValueError: names the flag, what was expected and what came.
    """
    given = {name: getattr(parsed, name) for name in list_given(parsed)}
    if "num_connections" in given and given.keys() & {"rate", "arrivals"}:
        raise ValueError(
            "--closed: expected no --rate and no --arrivals with it: connections ask when they are answered"
        )
    defaults = {"model": "", "api_key": environment.get(API_KEY, "")}
    return LoadOptions(url=parsed.url, **(defaults | given))


def _check_range(
    flag: str, value: float, *, above: float = -math.inf, least: float = -math.inf, most: float = math.inf
) -> None:
    if not (math.isfinite(value) and value > above and least <= value <= most):
        bounds = ((">", above), (">=", least), ("<=", most))
        expected = " and ".join(f"{sign} {bound:g}" for sign, bound in bounds if math.isfinite(bound))
        raise ValueError(f"{flag}: expected a number {expected}, got {value:g}")

"""Progress of work that takes long: bars where somebody looks and tqdm is installed."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

Report = Callable[[int], object]
"""Told of bytes that are done."""
Watch = Callable[[str, int], AbstractContextManager[Report]]
"""Opened with what is done and how many bytes that is."""


@contextmanager
def show_bytes(what: str, num_bytes: int, *, is_shown: bool) -> Iterator[Report]:
    """A bar of bytes, or nothing."""
    try:
        from tqdm.auto import tqdm
    except ModuleNotFoundError:
        yield lambda _: None
        return
    options: dict[str, Any] = {"unit": "B", "unit_scale": True, "unit_divisor": 1024, "leave": False}
    with tqdm(desc=what, total=num_bytes, disable=not is_shown, **options) as bar:
        yield bar.update


@contextmanager
def show_lines(otherwise: Callable[[dict[str, Any]], object], *, is_shown: bool) -> Iterator[Callable[..., object]]:
    """A bar that lines of an export's log move; where there is none, each goes to `otherwise`."""
    try:
        from tqdm.auto import tqdm
    except ModuleNotFoundError:
        is_shown = False
    if not is_shown:
        yield otherwise
        return
    form = "{percentage:3.0f}%|{bar}| {elapsed} {desc}"
    with tqdm(total=1.0, bar_format=form, leave=False) as bar:

        def move(line: dict[str, Any]) -> None:
            # A job that another worker has taken over goes on at an earlier step.
            bar.n = line["fraction"]
            bar.set_description_str(f"{line['step']}: {line['message']}")

        yield move

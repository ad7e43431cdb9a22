"""One bundle after the other: what is wrong with one of them does not keep a part from the others."""

import gc
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator

from benchmarks.gpu.bundles import Bundle
from benchmarks.gpu.findings import Finding
from benchmarks.gpu.plan import Plan

NOT_EXPORTED = "no bundle: it was not exported"
NO_BFLOAT16 = "ONNX Runtime has no bfloat16 on the CPU"


def look_at_all(
    plan: Plan, bundles: Iterable[Bundle], find: Callable[[Plan, Bundle], Iterable[Finding]]
) -> Iterator[Finding]:
    """What is found of each."""
    for bundle in bundles:
        yield from look_at(plan, bundle, find)
        # Sessions are in cycles, and the next one's may need their memory.
        gc.collect()


def look_at(plan: Plan, bundle: Bundle, find: Callable[[Plan, Bundle], Iterable[Finding]]) -> Iterator[Finding]:
    """What is found of one; what it raises is found, too."""
    if (finding := skip(plan, bundle)) is not None:
        yield finding
        return
    try:
        yield from find(plan, bundle)
    except Exception as error:
        traceback.print_exc(file=sys.stderr)
        first = (str(error).strip().splitlines() or ["without a word"])[0]
        yield Finding(cells=bundle.cells, broken=(f"{type(error).__name__}: {first}",))


def skip(plan: Plan, bundle: Bundle) -> Finding | None:
    """Why a bundle is not looked at; None if it is."""
    if plan.device == "cpu" and bundle.precision == "bfloat16":
        return Finding(cells=bundle.cells, unjudged=NO_BFLOAT16)
    return None if bundle.is_there else Finding(cells=bundle.cells, broken=(NOT_EXPORTED,))

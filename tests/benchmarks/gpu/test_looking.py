"""Bundles that are not there, or that raise, and those that come after them."""

import dataclasses

from benchmarks.gpu import looking
from benchmarks.gpu.findings import Finding


def test_bundles_that_are_not_looked_at(bundle, plan):
    assert looking.skip(plan, bundle) is None
    narrow = dataclasses.replace(bundle, precision="bfloat16")
    assert looking.skip(plan, narrow).unjudged == looking.NO_BFLOAT16
    # On a GPU it is missing, and what is missing is not proven.
    assert looking.skip(dataclasses.replace(plan, device="cuda"), narrow).broken == (looking.NOT_EXPORTED,)


def test_one_that_raises_does_not_keep_the_others(bundle, plan, capsys):
    numbers = iter(range(3))

    def find(_, one):
        yield Finding(cells=one.cells)
        if next(numbers) == 1:
            raise RuntimeError("CUDA failure 719\nand much more")

    missing = dataclasses.replace(bundle, model="missing")
    findings = list(looking.look_at_all(plan, [bundle, bundle, missing, bundle], find))
    assert [finding.broken for finding in findings] == [
        (),
        (),
        ("RuntimeError: CUDA failure 719",),
        (looking.NOT_EXPORTED,),
        (),
    ]
    assert "and much more" in capsys.readouterr().err

"""What pytest reports of kernels."""

import dataclasses

from benchmarks.gpu import kernels

PATH = "tests/kernels/cuda/test_on_gpu.py"
FAILED = "<testcase name='bad'><failure message='far'/></testcase>"
SKIPPED = "<testcase name='it'><skipped message='no GPU: none'>test.py:3: no GPU: none</skipped></testcase>"
FILE = """<testcase name='it'><skipped message='collection skipped'>('test.py', 3, 'Skipped: no GPU: none')</skipped>
</testcase>"""


def judge(*cases):
    return kernels.judge(PATH, f"<testsuites><testsuite>{''.join(cases)}</testsuite></testsuites>", "3 passed")


def test_reports():
    good = "<testcase name='good'/>"
    assert judge(good, good, SKIPPED).verdict == "passed"
    assert judge(good, SKIPPED).cells["passed"] == "1"
    assert judge(good, FAILED).broken == ("1 failed, such as bad",)
    assert judge(good, "<testcase name='worse'><error message='x'/></testcase>").broken
    assert judge(SKIPPED, SKIPPED).broken == ("nothing was tested: test.py:3: no GPU: none",)
    assert judge(FILE).broken == ("nothing was tested: no GPU: none",)
    assert judge().broken == ("nothing was tested: 3 passed",)


def test_where_they_cannot_be(plan, monkeypatch):
    assert {finding.unjudged for finding in kernels.run(plan)} == {"they are a GPU's"}
    monkeypatch.setattr(kernels.shutil, "which", lambda _: None)
    on_gpu = dataclasses.replace(plan, device="cuda")
    assert {finding.unjudged for finding in kernels.run(on_gpu)} == {"no nvcc to build them"}

"""The tests of the CUDA kernels, which build them where nvcc is."""

import shutil
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path

from benchmarks.gpu.bundles import ROOT
from benchmarks.gpu.findings import Finding
from benchmarks.gpu.plan import Plan

TESTS = ("tests/kernels/cuda/test_build.py", "tests/kernels/cuda/test_on_gpu.py")


def run(plan: Plan) -> Iterator[Finding]:
    reason = "they are a GPU's" if plan.device == "cpu" else None if shutil.which("nvcc") else "no nvcc to build them"
    for path in TESTS:
        yield Finding(cells={"tests": path}, unjudged=reason) if reason else run_tests(path)


def run_tests(path: str) -> Finding:
    with tempfile.TemporaryDirectory() as work:
        report = Path(work) / "report.xml"
        # Without -P this folder would be on the path, and `models` importable without being installed.
        command = [sys.executable, "-P", "-m", "pytest", path, "-q", f"--junitxml={report}", "-p", "no:cacheprovider"]
        done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        said = (done.stdout.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        if not report.exists():
            return Finding(cells={"tests": path}, broken=(said,))
        return judge(path, report.read_text("utf-8"), said)


def judge(path: str, report: str, said: str) -> Finding:
    """A run of tests by its report in JUnit's XML.

    Args:
        path: of the tests.
        report: the XML.
        said: the last line that pytest printed.
    """
    cases = list(ElementTree.fromstring(report).iter("testcase"))
    bad = [case for case in cases if case.find("failure") is not None or case.find("error") is not None]
    skipped = [case.find("skipped") for case in cases if case.find("skipped") is not None]
    cells = {
        "tests": path,
        "passed": f"{len(cases) - len(bad) - len(skipped):,}",
        "failed": f"{len(bad):,}",
        "skipped": f"{len(skipped):,}",
    }
    broken = [f"{len(bad)} failed, such as {bad[0].get('name')}"] if bad else []
    if len(skipped) == len(cases):
        # Of a whole file that is skipped, the message says only that.
        reason = (skipped[0].text or "").rpartition("Skipped: ")[2].rstrip("')\"") if skipped else said
        broken.append(f"nothing was tested: {reason}")
    return Finding(cells=cells, broken=tuple(broken))

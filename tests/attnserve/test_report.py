"""The report of a replay: its verdict, and the table that people read."""

import dataclasses

import pytest

from attnserve.certificate import Certificate, Deviation, Quantisation
from attnserve.report import BatchResult, Report


def report_of(logits: float, maps: float, num_changed: int = 0) -> Report:
    certificate = Certificate(
        precision="float32", logits=Deviation(reference=1e-6, allowed=4e-6), maps=Deviation(reference=0.0, allowed=0.0)
    )
    batches = (
        BatchResult(num_sequences=1, longest=3, logits=0.0, maps=0.0, num_changed=0),
        BatchResult(num_sequences=2, longest=5, logits=logits, maps=maps, num_changed=num_changed),
    )
    return Report(device="cpu", batches=batches, certificate=certificate)


@pytest.mark.parametrize(
    ("logits", "maps", "passed"),
    [
        (4e-6, 0.0, True),
        (4.1e-6, 0.0, False),
        (0.0, 1e-30, False),
        (float("inf"), 0.0, False),
        (0.0, float("inf"), False),
    ],
)
def test_the_verdict(logits: float, maps: float, passed: bool) -> None:
    report = report_of(logits, maps)
    assert report.passed == passed
    assert ("within the certificate" in report.table()) == passed
    assert ("OUTSIDE THE CERTIFICATE" in report.table()) != passed


def test_the_table() -> None:
    assert report_of(2e-6, 0.0).table().splitlines() == [
        "largest differences of float32 from PyTorch float64, on cpu:",
        "sequences  longest    logits      maps",
        "        1        3   0.0e+00   0.0e+00",
        "        2        5   2.0e-06   0.0e+00",
        "           allowed   4.0e-06   0.0e+00",
        "within the certificate",
    ]


def test_the_table_of_int8_says_what_its_weights_cost() -> None:
    cost = Quantisation(
        num_answers=264, largest_difference=0.0123, mean_difference=0.002, top1_agreement=0.9962, kl_bits=1.2e-4
    )
    exact = report_of(2e-6, 0.0)
    certificate = dataclasses.replace(exact.certificate, precision="int8")
    title, *lines = dataclasses.replace(exact, certificate=certificate, quantisation=cost).table().splitlines()
    assert title == "largest differences of int8 from PyTorch float64 of the same weights, on cpu:"
    assert lines == [
        *exact.table().splitlines()[1:],
        "what rounding the weights changed in 264 answers, PyTorch float64 on both sides:",
        "  largest     mean  same top-1  KL, bits",
        "  1.2e-02  2.0e-03      99.62%   1.2e-04",
    ]


def test_answers_that_changed_are_outside_whatever_the_differences_are() -> None:
    report = report_of(2e-6, 0.0, num_changed=3)
    assert not report.passed
    assert report.num_changed == 3
    said = "OUTSIDE THE CERTIFICATE: 3 answers name another class though the margin is large"
    assert report.table().splitlines()[-1] == said


def test_wrong_top_entries_are_outside_too() -> None:
    (first, second) = report_of(2e-6, 0.0).batches
    batches = (first, dataclasses.replace(second, num_wrong_top=2))
    report = dataclasses.replace(report_of(2e-6, 0.0), batches=batches)
    assert not report.passed
    assert report.num_wrong_top == 2
    said = "OUTSIDE THE CERTIFICATE: of 2 answers the top entries are not those of their logits"
    assert report.table().splitlines()[-1] == said

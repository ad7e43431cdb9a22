"""Ids tell what they are: ours or not, and until when."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from attnserve.service.captures.identity import NAME, CaptureId, check_name, make_name, read_id
from attnserve.service.problems import Invalid

NAMES = st.from_regex(NAME, fullmatch=True)
END = st.integers(0, 2**32 - 1)


@settings(deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(name=NAMES, expires=END)
def test_what_is_written_is_read(name, expires):
    identity = CaptureId(name=name, expires=expires)
    assert read_id(str(identity)) == identity
    # The gateway finds the name in front of the dot.
    assert str(identity).split(".")[0] == name


@settings(deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(
    name=NAMES, expires=END, place=st.integers(0, 200), letter=st.sampled_from("abcdefghijklmnopqrstuvwxyz234567A.=0")
)
def test_a_changed_letter_is_another_id(name, expires, place, letter):
    text = str(CaptureId(name=name, expires=expires))
    place %= len(text)
    changed = text[:place] + letter + text[place + 1 :]
    assert changed == text or read_id(changed) is None


@pytest.mark.parametrize(
    "text",
    [
        "",
        ".",
        "a" * 16,
        "a" * 16 + ".",
        "." + "a" * 16,
        "a" * 16 + "." + "a" * 16,
        "a" * 16 + "." + "a" * 15,
        "a" * 16 + ".!" + "a" * 15,
        "a" * 16 + "." + "\u0130" * 16,
        "a" * 10_000,
        "nope",
        "../../etc/passwd",
    ],
)
def test_others_are_none_of_ours(text):
    assert read_id(text) is None


def test_a_tag_is_written_in_one_way_only():
    text = str(CaptureId(name="a" * 16, expires=1000))
    assert read_id(text.upper()) is None
    name, _, tag = text.partition(".")
    assert read_id(f"{name}.{tag.upper()}") is None
    assert read_id(f"{text}======") is None


def test_names_are_not_guessed():
    names = {make_name() for _ in range(100)}
    assert len(names) == 100
    assert all(NAME.fullmatch(name) and len(name) == 32 for name in names)


def test_a_gateways_name_is_taken_or_refused():
    assert check_name(None) is None
    # As HAProxy's uuid() makes it.
    assert check_name("5f1b7a3e-0c7d-4a53-9d0b-0242ac120002") == "5f1b7a3e-0c7d-4a53-9d0b-0242ac120002"
    for wrong in ("", "short", "a" * 65, "with.dot.in.the.middle", "a" * 15 + "/", "\xe9" * 20):
        with pytest.raises(Invalid) as caught:
            check_name(wrong)
        (fault,) = caught.value.faults
        assert fault.field == "Capture-Id"
        assert len(fault.message) < 120

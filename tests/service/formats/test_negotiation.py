"""Which format an answer is written in, and how it is compressed."""

import pytest

from attnserve.service.formats.negotiation import (
    BINARY,
    EVENTS,
    FORMATS,
    IDENTITY,
    JSON,
    NPZ,
    PNG,
    SAFETENSORS,
    choose_encoding,
    choose_format,
)
from attnserve.service.problems import NotAcceptable


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        (None, JSON),
        ("", JSON),
        ("*/*", JSON),
        ("application/*", JSON),
        ("application/json", JSON),
        ("APPLICATION/JSON", JSON),
        ("application/json; charset=utf-8", JSON),
        (SAFETENSORS, SAFETENSORS),
        (NPZ, NPZ),
        ("text/html, application/xhtml+xml, */*;q=0.8", JSON),
        # The client's order among equals, then ours.
        (f"{NPZ}, {SAFETENSORS}", NPZ),
        (f"{SAFETENSORS}, {NPZ}", SAFETENSORS),
        (f"text/html, {SAFETENSORS}", SAFETENSORS),
        (f"{SAFETENSORS}, */*", SAFETENSORS),
        # q-values before order.
        (f"{NPZ};q=0.5, {SAFETENSORS};q=0.9, application/json;q=0.1", SAFETENSORS),
        (f"{NPZ} ; Q=0.5 , {SAFETENSORS};level=1;q=0.25", NPZ),
        (f"*/*;q=0.1, {NPZ};q=0.2", NPZ),
        # The most specific entry speaks for a format, whatever its place.
        ("application/json;q=0, */*", SAFETENSORS),
        (f"*/*, application/json;q=0, {SAFETENSORS};q=0", NPZ),
        (f"application/*;q=0.9, application/json;q=0.1, {SAFETENSORS};q=0.2", NPZ),
        # A q-value that is none is no wish.
        (f"{SAFETENSORS};q=nan, {NPZ};q=0.001", NPZ),
        (f"{SAFETENSORS};q=-1, {NPZ};q=0.001", NPZ),
        (f"{SAFETENSORS};q=inf, {NPZ};q=1.000", NPZ),
        (f", ,{NPZ},", NPZ),
    ],
)
def test_format(accept, expected):
    assert choose_format(accept) == expected


@pytest.mark.parametrize(
    "accept",
    ["text/html", "text/*", "application", "*", "json", "application/json;q=0", "*/*;q=0", ";", ",", "q=1", "a" * 9000],
)
def test_no_format(accept):
    with pytest.raises(NotAcceptable) as caught:
        choose_format(accept)
    (fault,) = caught.value.faults
    assert fault.field == "Accept"
    assert fault.message.startswith(f"expected one of {', '.join(FORMATS)}, got")
    assert len(fault.message) < 300


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        (None, JSON),
        ("*/*", JSON),
        (EVENTS, EVENTS),
        ("text/*", EVENTS),
        (f"{EVENTS};charset=utf-8", EVENTS),
        ("application/*", JSON),
        # What is said of application/* is not said of text/event-stream.
        ("application/json;q=0.1, application/*", JSON),
        ("application/json;q=0.1, application/*, */*;q=0.2", EVENTS),
        (f"{JSON}, {EVENTS}", JSON),
        (f"{EVENTS}, {JSON}", EVENTS),
        (f"{EVENTS};q=0, */*", JSON),
    ],
)
def test_format_of_what_goes_on(accept, expected):
    assert choose_format(accept, (JSON, EVENTS)) == expected


@pytest.mark.parametrize("accept", ["application/*;q=0", "text/html", "text/*;q=0", SAFETENSORS, f"{EVENTS};q=2"])
def test_no_format_of_what_goes_on(accept):
    with pytest.raises(NotAcceptable, match=f"expected one of {JSON}, {EVENTS}, got"):
        choose_format(accept, (JSON, EVENTS))


def test_some_answers_have_fewer_formats():
    assert choose_format(f"{SAFETENSORS}, */*;q=0.1", (JSON,)) == JSON
    with pytest.raises(NotAcceptable, match="expected one of application/json, got"):
        choose_format(SAFETENSORS, (JSON,))


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        (PNG, PNG),
        (BINARY, BINARY),
        # What a browser's <img> sends.
        ("image/avif,image/webp,image/png,image/svg+xml,image/*;q=0.8,*/*;q=0.5", PNG),
        (f"{BINARY};q=0.5, {SAFETENSORS};q=0.6", SAFETENSORS),
    ],
)
def test_formats_of_maps(accept, expected):
    assert choose_format(accept) == expected


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        (None, IDENTITY),
        ("", IDENTITY),
        ("identity", IDENTITY),
        ("br", IDENTITY),
        ("deflate, br;q=1.0", IDENTITY),
        ("gzip", "gzip"),
        ("x-gzip", "gzip"),
        ("GZIP;q=1.0", "gzip"),
        # As browsers and clients send it.
        ("gzip, deflate, br, zstd", "zstd"),
        ("gzip, deflate", "gzip"),
        ("zstd", "zstd"),
        ("*", "zstd"),
        ("*;q=0.1", "zstd"),
        ("gzip;q=0.9, zstd;q=0.5", "gzip"),
        ("gzip;q=0.5, *;q=0.9", "zstd"),
        ("zstd;q=0, *", "gzip"),
        ("zstd;q=0, gzip;q=0", IDENTITY),
        # None is as good as what it is worth.
        ("gzip;q=0.5, identity", IDENTITY),
        ("gzip;q=0.5, identity;q=0.4", "gzip"),
        ("gzip;q=0.5, identity;q=0", "gzip"),
        ("gzip, *;q=0", "gzip"),
        ("identity;q=0.5, *;q=0", IDENTITY),
        ("gzip;q=nan", IDENTITY),
        ("gzip;q=0.001", "gzip"),
        (", ,gzip,", "gzip"),
    ],
)
def test_encoding(accept, expected):
    assert choose_encoding(accept) == expected


@pytest.mark.parametrize("accept", ["identity;q=0", "*;q=0", "br, *;q=0", "br, identity;q=0", "gzip;q=0, identity;q=0"])
def test_no_encoding(accept):
    with pytest.raises(NotAcceptable) as caught:
        choose_encoding(accept)
    (fault,) = caught.value.faults
    assert fault.field == "Accept-Encoding"
    assert fault.message == f"expected one of zstd, gzip, identity, got {accept!r}"

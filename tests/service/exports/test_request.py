"""What may be asked about exports, and how it is refused."""

import json
import uuid

import pytest

from attnserve.service.exports.job import Place
from attnserve.service.exports.request import (
    ExportRequest,
    ListRequest,
    check_id,
    choose_id,
    parse_export,
    parse_last_event,
    parse_list,
    read_place,
    write_place,
)
from attnserve.service.problems import BadRequest, Invalid, NotFound

SMALLEST = {"checkpoint": "mine", "model": "tiny"}
ID = "0b9c53a1-6d0c-4d43-9d1f-5c0f7a2f8a11"


def parse(**fields):
    return parse_export(json.dumps({**SMALLEST, **fields}).encode())


def test_the_rest_has_defaults():
    assert parse() == ExportRequest(
        checkpoint="mine", model="tiny", version=None, precision="float32", portable=False, top_k=None, activate=True
    )


def test_every_field_counts():
    asked = parse(
        checkpoint="/models/mine",
        version=7,
        precision="float16",
        options={"portable": True, "top_k": 5},
        activate=False,
    )
    assert asked == ExportRequest(
        checkpoint="/models/mine", model="tiny", version=7, precision="float16", portable=True, top_k=5, activate=False
    )


def test_null_is_as_if_it_were_not_there():
    assert parse(version=None, precision=None, options=None, activate=None) == parse()


@pytest.mark.parametrize(
    ("fields", "field", "message"),
    [
        ({"checkpoint": None}, "checkpoint", "expected the name of an uploaded checkpoint, .*, got null"),
        ({"checkpoint": 3}, "checkpoint", "got the number 3"),
        ({"checkpoint": ""}, "checkpoint", "got the string ''"),
        ({"checkpoint": "../mine"}, "checkpoint", r"got the string '\.\./mine'"),
        ({"checkpoint": "mine/1"}, "checkpoint", "got the string 'mine/1'"),
        ({"checkpoint": ".hidden"}, "checkpoint", "got the string"),
        ({"checkpoint": "/a\0b"}, "checkpoint", "got the string"),
        ({"checkpoint": "/" + "a" * 5000}, "checkpoint", r"got the string '/aaa.*'\.\.\."),
        ({"model": None}, "model", "expected letters, .*, got null"),
        ({"model": "a/b"}, "model", "got the string 'a/b'"),
        ({"model": ["a"]}, "model", "got a list"),
        ({"version": 0}, "version", "expected an integer from 1 to 999999999, got the number 0"),
        ({"version": -1}, "version", "got the number -1"),
        ({"version": 1_000_000_000}, "version", "got the number 1000000000"),
        ({"version": "1"}, "version", "got the string '1'"),
        ({"version": True}, "version", "got true"),
        ({"version": 1.0}, "version", r"got the number 1\.0"),
        ({"precision": "float64"}, "precision", "expected one of float32, .*, got the string 'float64'"),
        ({"precision": {}}, "precision", "got an object"),
        ({"options": []}, "options", "expected an object, got an empty list"),
        ({"options": {"portable": 1}}, "options.portable", "expected true or false, got the number 1"),
        ({"options": {"fast": True}}, "options.fast", "unknown field; expected one of portable, top_k"),
        ({"options": {"top_k": 0}}, "options.top_k", "expected an integer from 1 to 16777216, got the number 0"),
        ({"options": {"top_k": 2**24 + 1}}, "options.top_k", "got the number 16777217"),
        ({"options": {"top_k": True}}, "options.top_k", "got true"),
        ({"options": {"top_k": 5.0}}, "options.top_k", r"got the number 5\.0"),
        ({"activate": "no"}, "activate", "expected true or false, got the string 'no'"),
        ({"activated": True}, "activated", "unknown field; expected one of checkpoint, model, version"),
    ],
)
def test_a_wrong_field_is_named(fields, field, message):
    with pytest.raises(Invalid, match=message) as caught:
        parse(**fields)
    assert [fault.field for fault in caught.value.faults] == [field]


@pytest.mark.parametrize("missing", SMALLEST)
def test_a_missing_field_is_named(missing):
    body = json.dumps({name: value for name, value in SMALLEST.items() if name != missing}).encode()
    with pytest.raises(Invalid, match=f"{missing}: missing; expected"):
        parse_export(body)


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'"mine"', b"NaN", b"[" * 50_000])
def test_what_is_no_object_is_refused(body):
    with pytest.raises(BadRequest, match=r"body: expected"):
        parse_export(body)


def test_fingerprints_tell_requests_apart():
    others = [
        parse(checkpoint="other"),
        parse(model="other"),
        parse(version=1),
        parse(precision="float16"),
        parse(options={"portable": True}),
        parse(options={"top_k": 5}),
        parse(activate=False),
    ]
    assert len({asked.fingerprint for asked in [parse(), *others]}) == 8
    # What is written otherwise and means the same.
    assert parse(options={}, precision="float32", activate=True).fingerprint == parse().fingerprint


def test_a_list_has_filters():
    assert parse_list([]) == ListRequest(state=None, model=None, limit=20, after=None)
    query = [("state", "failed"), ("model", "tiny"), ("limit", "5"), ("after", f"17.{ID}")]
    after = Place(created_ms=17, id=ID)
    assert parse_list(query) == ListRequest(state="failed", model="tiny", limit=5, after=after)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("limit", value) for value in ("0", "101", "-1", "1.0", "", "many", "٣", "9" * 400)),
        *(("state", value) for value in ("", "FAILED", "done")),
        *(("model", value) for value in ("", "a/b", "..")),
        *(("after", value) for value in ("", "17", f"x.{ID}", f"17.{ID}x", f"{'9' * 16}.{ID}")),
        ("page", "2"),
    ],
)
def test_wrong_filters_are_named(name, value):
    with pytest.raises(Invalid) as caught:
        parse_list([(name, value)])
    assert [fault.field for fault in caught.value.faults] == [name]


def test_a_filter_given_twice_is_named():
    with pytest.raises(Invalid, match=r"state: expected each parameter once"):
        parse_list([("model", "tiny"), ("state", "failed"), ("state", "queued")])


def test_places_are_read_as_written():
    place = Place(created_ms=1_700_000_000_123, id=ID)
    assert read_place(write_place(place)) == place


def test_ids_are_those_of_jobs():
    assert check_id(ID) == ID
    for other in ("", "x", ID.upper(), f"{ID}0", f"{ID}\n", "../jobs", ID.replace("-", "")):
        with pytest.raises(NotFound, match=r"id: expected the id of an export"):
            check_id(other)


def test_an_idempotency_key_stands_for_one_job():
    first = choose_id({"Idempotency-Key": '"retry-1"'}, "ci")
    assert first == str(uuid.UUID(first)) == check_id(first)
    assert choose_id({"Idempotency-Key": '"retry-1"'}, "ci") == first
    # As clients send it that know no structured fields.
    assert choose_id({"Idempotency-Key": "retry-1"}, "ci") == first
    others = [
        choose_id({"Idempotency-Key": '"retry-2"'}, "ci"),
        choose_id({"Idempotency-Key": '"retry-1"'}, "somebody-else"),
        choose_id({"Idempotency-Key": '"retry-1"'}, None),
    ]
    assert len({first, *others}) == 4
    assert choose_id({}, "ci") is None


@pytest.mark.parametrize("key", ["", '""', '"', 'a"b', '"a', "a b", "ä", '"a\tb"', "a" * 256, '"a", "b"'])
def test_other_idempotency_keys_are_refused(key):
    with pytest.raises(BadRequest, match=r"Idempotency-Key: expected 1 to 255"):
        choose_id({"Idempotency-Key": key}, None)


def test_a_client_goes_on_after_the_last_event_it_has_seen():
    assert parse_last_event({}) == 0
    assert parse_last_event({"Last-Event-ID": "0"}) == 1
    assert parse_last_event({"Last-Event-ID": "41"}) == 42
    assert parse_last_event({"Last-Event-ID": "end"}) is None


@pytest.mark.parametrize("event", ["", "-1", "x", "1.5", "²", "9" * 10])
def test_other_events_are_refused(event):
    with pytest.raises(BadRequest, match=r"Last-Event-ID: expected the id of an event"):
        parse_last_event({"Last-Event-ID": event})

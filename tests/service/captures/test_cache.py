"""What a client may keep, and what it is told when it asks again."""

import pytest
from fastapi import Request

from attnserve.service.captures.cache import judge
from attnserve.service.captures.capture import RowError
from attnserve.service.formats.negotiation import IDENTITY, JSON, PNG
from tests.captures import make_capture


def request(path="/v1/captures/x/thumbnails", query="", **headers):
    raw = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    return Request({"type": "http", "method": "GET", "path": path, "query_string": query.encode(), "headers": raw})


def tag_of(capture, *arguments, media_type=JSON, encoding=IDENTITY, **options):
    return judge(request(*arguments, **options), capture, media_type, encoding, 60).headers["ETag"]


def test_it_may_be_kept_until_the_capture_ends():
    capture = make_capture()
    freshness = judge(request(), capture, JSON, IDENTITY, 60)
    assert freshness.headers["Cache-Control"] == "private, max-age=60, immutable"
    assert freshness.headers["Attention-Capture"] == f'"{capture.id}";expires=60'
    assert not freshness.is_known


def test_what_the_way_it_is_kept_has_cost_is_told():
    capture = make_capture()
    assert "Attention-Store-Row-Error" not in judge(request(), capture, JSON, IDENTITY, 60).headers
    capture.row_error = RowError(value=0.00123456, num_rows=10)
    assert judge(request(), capture, JSON, IDENTITY, 60).headers["Attention-Store-Row-Error"] == "0.00123"


def test_each_representation_has_a_tag_of_its_own():
    capture, other = make_capture(), make_capture("b" * 16)
    tags = [
        tag_of(capture),
        tag_of(other),
        tag_of(capture, "/v1/captures/x"),
        tag_of(capture, query="layers=0"),
        tag_of(capture, media_type=PNG),
        tag_of(capture, encoding="zstd"),
    ]
    assert len(set(tags)) == len(tags)
    assert tag_of(capture) == tags[0]
    assert all(tag.startswith('W/"') for tag in tags)


@pytest.mark.parametrize("form", ["{}", "*", '"other", {}', '{} , W/"z"'])
def test_a_client_that_has_it_is_told_so(form):
    capture = make_capture()
    freshness = judge(request(if_none_match=form.format(tag_of(capture))), capture, JSON, IDENTITY, 60)
    assert freshness.is_known
    response = freshness.answer_known()
    assert response.status_code == 304
    assert response.body == b""
    assert response.headers["ETag"] == tag_of(capture)
    assert response.headers["Vary"] == "Accept, Accept-Encoding"


@pytest.mark.parametrize("text", ["", "x", 'W/"x"', '"*"'])
def test_a_client_that_has_another(text):
    assert not judge(request(if_none_match=text), make_capture(), JSON, IDENTITY, 60).is_known

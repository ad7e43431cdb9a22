"""Headers of an upload: digests as RFC 9530 has them, conditions as RFC 9110 has them, and what no upload is."""

import base64
import hashlib

import pytest
from starlette.datastructures import Headers

from attnserve.service.checkpoints.headers import check_conditions, check_form, read_digest, tag_of
from attnserve.service.problems import BadRequest, PreconditionFailed, UnsupportedMediaType

# The example of RFC 9530, appendix D.
CONTENT = b'{"hello": "world"}\n'
DIGEST = hashlib.sha256(CONTENT).hexdigest()
ENCODED = "RK/0qy18MlBSVnWgjwz6lZEWjP/lF5HF9bvEF8FabDg="
OTHER = "f" * 64


def headers(*pairs: tuple[str, str]) -> Headers:
    return Headers(raw=[(name.lower().encode(), value.encode("latin-1")) for name, value in pairs])


def refused(error, work, *arguments) -> str:
    """What is said against it."""
    with pytest.raises(error) as caught:
        work(*arguments)
    (fault,) = caught.value.faults
    assert caught.value.detail == f"{fault.field}: {fault.message}"
    return caught.value.detail


@pytest.mark.parametrize(
    "value",
    [
        f"sha-256=:{ENCODED}:",
        f"  sha-256=:{ENCODED}:  ",
        f"sha-512=:AAAA:, sha-256=:{ENCODED}:",
        f"sha-256=:{ENCODED}:,\tmd5=:AA==:",
        # The last one of a name counts; padding may be missing; parameters mean nothing.
        f"sha-256=:AAAA:, sha-256=:{ENCODED}:",
        f"sha-256=:{ENCODED.rstrip('=')}:",
        f"sha-256=:{ENCODED}:;q=1;what",
    ],
)
def test_a_digest_is_read(value):
    assert base64.b64decode(ENCODED).hex() == DIGEST
    assert read_digest(headers(("Content-Digest", value))) == DIGEST


def test_a_digest_over_several_lines_is_one():
    lines = (("Content-Digest", "md5=:AA==:"), ("Content-Digest", f"sha-256=:{ENCODED}:"))
    assert read_digest(headers(*lines)) == DIGEST


@pytest.mark.parametrize("value", [None, "", " ", "sha-512=:AAAA:", "md5=:AA==:, unixsum=::"])
def test_without_sha_256_there_is_none(value):
    assert read_digest(headers(*([] if value is None else [("Content-Digest", value)]))) is None


@pytest.mark.parametrize(
    "value",
    [
        ENCODED,
        f"sha-256={ENCODED}",
        f"sha-256=:{ENCODED}",
        f"SHA-256=:{ENCODED}:",
        f'sha-256="{ENCODED}"',
        f"sha-256=:{DIGEST}!:",
        f"sha-256=:{ENCODED}:,",
        f"sha-256=:{ENCODED}: md5=:AA==:",
        "sha-256=:A:",
        "sha-256=:AA=A:",
        "sha-256",
        "sha-256=?1",
        "=:AA==:",
        "x" * 10_000,
    ],
)
def test_a_digest_that_is_none_is_named(value):
    said = refused(BadRequest, read_digest, headers(("Content-Digest", value)))
    assert said.startswith("Content-Digest: expected sha-256=:BASE64:, got '")
    assert len(said) < 200


@pytest.mark.parametrize(("content", "size"), [("", 0), ("AAAA", 3), (base64.b64encode(b"x" * 33).decode(), 33)])
def test_a_digest_of_another_size_is_none(content, size):
    said = refused(BadRequest, read_digest, headers(("Content-Digest", f"sha-256=:{content}:")))
    assert said == f"Content-Digest: sha-256: expected 32 bytes, got {size}"


TAG, WEAK = tag_of(DIGEST), f"W/{tag_of(DIGEST)}"


@pytest.mark.parametrize(
    ("there", "name", "value", "holds"),
    [
        (DIGEST, "If-Match", TAG, True),
        (DIGEST, "If-Match", f'"a", {TAG} ,W/"b"', True),
        (DIGEST, "If-Match", "*", True),
        (DIGEST, "If-Match", tag_of(OTHER), False),
        # Only strong tags say that something is the same to the bit.
        (DIGEST, "If-Match", WEAK, False),
        (None, "If-Match", "*", False),
        (None, "If-Match", TAG, False),
        (DIGEST, "If-None-Match", "*", False),
        (DIGEST, "If-None-Match", f"{tag_of(OTHER)},{TAG}", False),
        (DIGEST, "If-None-Match", WEAK, False),
        (DIGEST, "If-None-Match", tag_of(OTHER), True),
        (None, "If-None-Match", "*", True),
        (None, "If-None-Match", TAG, True),
    ],
)
def test_conditions(there, name, value, holds):
    if holds:
        check_conditions(headers((name, value)), there)
        return
    said = refused(PreconditionFailed, check_conditions, headers((name, value)), there)
    assert said.startswith(f"{name}: expected ")
    assert (DIGEST if there else "no such file") in said


def test_without_conditions_all_is_well():
    for there in (None, DIGEST):
        check_conditions(headers(), there)


@pytest.mark.parametrize("name", ["If-Match", "If-None-Match"])
@pytest.mark.parametrize("value", ["", DIGEST, f'"{DIGEST}', "*, *", f"{TAG} {TAG}", f"{TAG},", 'w/"a"'])
def test_conditions_that_are_none_are_named(name, value):
    said = refused(BadRequest, check_conditions, headers((name, value)), DIGEST)
    assert said.startswith(f"{name}: expected * or tags in quotes, got '")


@pytest.mark.parametrize(
    ("pair", "error"),
    [
        (("Content-Encoding", "gzip"), UnsupportedMediaType),
        (("Content-Encoding", "identity, br"), UnsupportedMediaType),
        (("Content-Type", "multipart/form-data; boundary=x"), UnsupportedMediaType),
        (("Content-Range", "bytes 0-9/100"), BadRequest),
    ],
)
def test_what_is_not_the_file_itself_is_refused_by_name(pair, error):
    assert refused(error, check_form, headers(pair)).startswith(f"{pair[0]}: expected ")


@pytest.mark.parametrize("kind", ["application/octet-stream", "application/json", "application/x-www-form-urlencoded"])
def test_any_other_type_is_a_file(kind):
    check_form(headers(("Content-Type", kind), ("Content-Encoding", "Identity")))
    check_form(headers())

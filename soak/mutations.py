"""Wrong frames of the Open Inference Protocol: what can become of a valid one, drawn from a seed."""

import gzip
import json
import random
import re
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from attnserve.service.oip.request import HEADER
from soak.connection import Question

ENCODING = "Content-Encoding"
# Beyond what int64 holds, what floats hold, what a shape may be, and what is no number.
NUMBERS = (
    *("0", "-1", "1", "2147483648", "-9223372036854775808", "9223372036854775807", "18446744073709551616", "9" * 400),
    *("1e300", "1e999", "-1e999", "0.5", "1.0", "NaN", "Infinity", "-Infinity", "null", "true", '"3"', "[]", "{}"),
    "0x10",
)
SHAPES: tuple[Any, ...] = (
    *([], [0], [-1], [1], [2**31, 2**31], [2**32, 2**32], [2**62, 4], [-3, -2], [65536, 1], [65537, 1], [1, 65537]),
    *([1, 1, 1, 1], [[1, 2]], [None, 2], [True, 2], [1.0, 2.0], ["1", "2"], {}, None, 7, "2,3", [10**30, 1], [1] * 999),
)
DATATYPES: tuple[Any, ...] = ("FP32", "INT64", "BYTES", "INT32", "FP16", "BOOL", "", "int64", None, 7, [], "X" * 5000)
WORDS = (
    b"\xff\xfe",
    b"\x00",
    b"\xed\xa0\x80",
    b"\xc0\xaf",
    b"\\ud800",
    b"\\u0000",
    b"\xf4\x90\x80\x80",
    b"\xef\xbb\xbf",
)
LENGTHS = ("0", "-1", "", "x", "9" * 30, "+3", "1e3", "0x10", "1_0", "00000007", "4294967296", " 5 ", "5, 5")
TIMEOUTS = ("0", "-1", "nan", "inf", "1e-9", "0.001", "1e400", "x", "5000", "86400001", "1_0")
# Zeros shrink a thousandfold: a bomb of 64 MiB is 64 KiB on the wire.
BOMB_BYTES = 64 * 1024 * 1024


@dataclass(frozen=True, kw_only=True, repr=False)
class Frame:
    """A body and the headers that say what it is."""

    path: str
    document: dict[str, Any] | None
    """What `head` says, as long as it is whole."""
    head: bytes
    tail: bytes
    header_length: str | None = None
    """Of `head`; None is the truth."""
    headers: tuple[tuple[str, str], ...] = ()

    def as_question(self) -> Question:
        """On the wire."""
        length = str(len(self.head)) if self.header_length is None else self.header_length
        headers = [(HEADER, length), *self.headers] if length != "absent" else list(self.headers)
        encoded = tuple((name.encode(), value.encode("latin-1", "replace")) for name, value in headers)
        return Question(path=self.path, body=self.head + self.tail, headers=encoded)


def make_frame(path: str, document: dict[str, Any], tail: bytes) -> Frame:
    """A frame that says what it is."""
    return Frame(path=path, document=document, head=json.dumps(document).encode(), tail=tail)


def mutate(frame: Frame, generator: random.Random) -> Frame:
    """One to three mutations of a valid frame."""
    for _ in range(generator.choice((1, 1, 1, 2, 3))):
        frame = generator.choice(MUTATIONS)(frame, generator)
    return frame


def _flip_bits(frame: Frame, generator: random.Random) -> Frame:
    body = bytearray(frame.head + frame.tail)
    for _ in range(generator.choice((1, 2, 8)) if body else 0):
        body[generator.randrange(len(body))] ^= 1 << generator.randrange(8)
    return _split(frame, bytes(body))


def _cut(frame: Frame, generator: random.Random) -> Frame:
    body = frame.head + frame.tail
    begin = generator.randrange(len(body) + 1)
    end = len(body) if generator.random() < 0.5 else begin + generator.randint(1, 40)
    return _split(frame, body[:begin] + body[end:])


def _insert(frame: Frame, generator: random.Random) -> Frame:
    body = frame.head + frame.tail
    place = generator.randrange(len(body) + 1)
    more = generator.choice((generator.randbytes(generator.randint(1, 64)), body[: generator.randrange(200)], body))
    return _split(frame, body[:place] + more + body[place:])


def _lie_about_length(frame: Frame, generator: random.Random) -> Frame:
    size = len(frame.head) + len(frame.tail)
    near = (str(len(frame.head) + step) for step in (-8, -1, 1, 8))
    return replace(frame, header_length=generator.choice((*LENGTHS, *near, str(size), str(size + 1), "absent")))


def _change_number(frame: Frame, generator: random.Random) -> Frame:
    found = list(re.finditer(rb"-?\d+(\.\d+)?", frame.head))
    if not found:
        return frame
    match = generator.choice(found)
    number = generator.choice(NUMBERS).encode()
    return replace(frame, head=frame.head[: match.start()] + number + frame.head[match.end() :], document=None)


def _change_tensor(frame: Frame, generator: random.Random) -> Frame:
    if frame.document is None:
        return frame
    document = json.loads(json.dumps(frame.document))
    tensor = generator.choice(document["inputs"])
    match generator.randrange(8):
        case 0 | 1 | 2:
            tensor["shape"] = generator.choice(SHAPES)
        case 3:
            tensor["datatype"] = generator.choice(DATATYPES)
        case 4:
            tensor["parameters"] = generator.choice(
                ({"binary_data_size": generator.choice((-1, 0, 1, 2**63, 2**64, 1.0, "8", None, True))}, None, [], {})
            )
        case 5:
            tensor["data"] = generator.choice(([], [1], [[1, 2], [3]], "x", None, [[[[]]]], [2**70], [1.5], ["\x00"]))
        case 6:
            document["inputs"] = generator.choice(([], [None], [tensor, tensor], [tensor] * 500, None, {}, tensor))
        case _:
            tensor["name"] = generator.choice(
                ("", "lengths", "tokens", "features", "text", None, 7, "\ud800", "x" * 9999)
            )
    return _rewrite(frame, document)


def _change_request(frame: Frame, generator: random.Random) -> Frame:
    if frame.document is None:
        return frame
    document = json.loads(json.dumps(frame.document))
    many = [{"name": f"layers.{index % 7}.weights"} for index in range(500)]
    outputs: tuple[Any, ...] = (
        [],
        [{}],
        [None],
        [{"name": "logits"}] * 2,
        many,
        [{"name": "logits", "parameters": {"binary_data": 1}}],
    )
    match generator.randrange(5):
        case 0:
            document["outputs"] = generator.choice((*outputs, None, "logits"))
        case 1:
            document["id"] = generator.choice(("", "x" * 2000, None, 7, "\ud800", "\x00", "\U0001f600" * 1000))
        case 2:
            document["parameters"] = generator.choice(
                ({"timeout": generator.choice((-1, 0, 1, 1000, 1e300, 2**70, "5", None))}, None, [], {"positions": [0]})
            )
        case 3:
            document = generator.choice(([document], None, 7, "x", {}, {"inputs": document}))
        case _:
            document["parameters"] = {f"name {index}": index for index in range(2000)}
    return _rewrite(frame, document)


def _nest(frame: Frame, generator: random.Random) -> Frame:
    opening, closing = generator.choice(((b"[", b"]"), (b'{"a":', b"}")))
    depth = generator.choice((50, 1023, 1024, 1025, 100_000))
    nested = opening * depth + b"1" + closing * depth
    place = generator.choice((b'"data": %b', b'"shape": %b', b'"parameters": %b', b'"id": %b')) % nested
    return replace(frame, head=frame.head.replace(b"{", b"{" + place + b", ", 1), document=None)


def _repeat_key(frame: Frame, generator: random.Random) -> Frame:
    keys = (b'"inputs"', b'"outputs"', b'"parameters"', b'"shape"', b'"name"', b'"datatype"', b'"binary_data_size"')
    key = generator.choice(keys)
    value = generator.choice((b"null", b"[]", b"{}", b"7", b'"x"', b"[1, 1]"))
    pair = key + b": " + value
    if generator.random() < 0.5:
        return replace(frame, head=frame.head.replace(key, pair + b", " + key, 1), document=None)
    return replace(frame, head=frame.head[:-1] + b", " + pair + b"}", document=None)


def _insert_no_text(frame: Frame, generator: random.Random) -> Frame:
    word = generator.choice(WORDS)
    if frame.tail and generator.random() < 0.3:
        place = generator.randrange(len(frame.tail))
        return replace(frame, tail=frame.tail[:place] + word + frame.tail[place + len(word) :])
    place = generator.randrange(len(frame.head) + 1)
    return replace(frame, head=frame.head[:place] + word + frame.head[place:], document=None)


def _fill_tail(frame: Frame, generator: random.Random) -> Frame:
    """NaN, infinities, the smallest and largest ids, or anything."""
    unit = generator.choice(
        (
            *(b"\x00\x00\xc0\x7f", b"\x00\x00\x80\x7f", b"\x00\x00\x80\xff", b"\x01\x00\x00\x00", b"\xff" * 4),
            *(b"\xff" * 8, b"\xff" * 7 + b"\x7f", b"\x00" * 7 + b"\x80", b"\x00" * 8, generator.randbytes(8)),
        )
    )
    size = len(frame.tail)
    begin = 0 if generator.random() < 0.5 or not size else generator.randrange(size) // 8 * 8
    return replace(frame, tail=(frame.tail[:begin] + unit * (size // len(unit) + 1))[:size])


def _pack(frame: Frame, generator: random.Random) -> Frame:
    body = frame.head + frame.tail
    encoding = generator.choice(("gzip", "deflate", "gzip", "deflate", "br", "zstd", "gzip, gzip", "identity", ""))
    packed = gzip.compress(body, 1, mtime=0) if encoding != "deflate" else zlib.compress(body, 1)
    match generator.randrange(6):
        case 0:
            packed = body
        case 1:
            packed = packed[: generator.randrange(len(packed))]
        case 2:
            packed += generator.choice((b"x", packed, bytes(100)))
        case 3:
            flipped = bytearray(packed)
            flipped[generator.randrange(len(flipped))] ^= 1 << generator.randrange(8)
            packed = bytes(flipped)
        case 4 if generator.random() < 0.3:
            packed = BOMBS[encoding == "deflate"]
    length = str(len(frame.head)) if frame.header_length is None else frame.header_length
    headers = (*frame.headers, (ENCODING, encoding))
    return replace(frame, head=packed, tail=b"", header_length=length, headers=headers, document=None)


def _make_raw(frame: Frame, generator: random.Random) -> Frame:
    size = generator.choice((0, 1, 4, 7, 8, 12, 16, 800, 8000, 80_000))
    body = generator.choice(
        (bytes(size), generator.randbytes(size), b"\x01" + bytes(size), frame.tail, b"a text" * size)
    )
    return replace(frame, head=b"", tail=body, header_length="0", document=None)


def _hurry(frame: Frame, generator: random.Random) -> Frame:
    return replace(frame, headers=(*frame.headers, ("Timeout-Ms", generator.choice(TIMEOUTS))))


MUTATIONS: tuple[Callable[[Frame, random.Random], Frame], ...] = (
    *(_flip_bits, _cut, _insert, _lie_about_length, _change_number, _change_number, _change_tensor, _change_tensor),
    *(_change_request, _nest, _repeat_key, _insert_no_text, _fill_tail, _pack, _make_raw, _hurry),
)
BOMBS = (gzip.compress(bytes(BOMB_BYTES), 9, mtime=0), zlib.compress(bytes(BOMB_BYTES), 9))


def _split(frame: Frame, body: bytes) -> Frame:
    """A changed body whose JSON ends where it did."""
    size = len(frame.head)
    return replace(frame, head=body[:size], tail=body[size:], document=None)


def _rewrite(frame: Frame, document: Any) -> Frame:
    kept = document if isinstance(document, dict) and isinstance(document.get("inputs"), list) else None
    kept = kept if kept and all(isinstance(tensor, dict) for tensor in kept["inputs"]) and kept["inputs"] else None
    return replace(frame, head=json.dumps(document).encode(), document=kept)

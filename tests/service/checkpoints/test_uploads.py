"""Uploads: all of a body or nothing, whatever clients, disks, deadlines and others do meanwhile."""

import asyncio
import base64
import errno
import hashlib
import os
import threading

import pytest
from fastapi import Request
from starlette.requests import ClientDisconnect

from attnserve.checkpoints import Checkpoints
from attnserve.service.checkpoints import uploads as module
from attnserve.service.checkpoints.uploads import MAX_UPLOADS, PIECE_BYTES, Uploads
from attnserve.service.problems import (
    BadRequest,
    Conflict,
    DeadlineExceeded,
    InsufficientStorage,
    Invalid,
    NotFound,
    Overloaded,
    PreconditionFailed,
    TooLarge,
    Unavailable,
)
from attnserve.upload import Upload

LIMIT = 3 * PIECE_BYTES
WEIGHTS = "model.safetensors"


class Body:
    """A request whose body the test sends when it likes."""

    def __init__(self, *parts: bytes, end: bool = True, **headers: str) -> None:
        raw = [(name.lower().replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
        self.messages = asyncio.Queue()
        self.num_asked = 0
        for part in parts:
            self.send(part)
        if end:
            self.send(b"", more=False)
        self.request = Request({"type": "http", "method": "PUT", "path": "/", "headers": raw}, self.receive)

    async def receive(self):
        self.num_asked += 1
        return await self.messages.get()

    def send(self, part: bytes, *, more: bool = True) -> None:
        self.messages.put_nowait({"type": "http.request", "body": part, "more_body": more})

    def leave(self) -> None:
        self.messages.put_nowait({"type": "http.disconnect"})


@pytest.fixture
def uploads(tmp_path):
    uploads = Uploads(Checkpoints(tmp_path / "checkpoints"), max_weights_bytes=LIMIT)
    yield uploads
    assert uploads.num_open == 0
    uploads.close()


def list_files(uploads) -> list[str]:
    folder = uploads.checkpoints.folder
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if not path.is_dir())


def receive(uploads, *parts: bytes, file: str = WEIGHTS, name: str = "mine", **headers: str):
    """Upload, and return what is stored."""

    async def run():
        return await uploads.receive(Body(*parts, **headers).request, name, file)

    return asyncio.run(run())


def refused(error, uploads, *parts: bytes, **options: str) -> str:
    """What is said against an upload, of which nothing is left."""
    before = list_files(uploads)
    with pytest.raises(error) as caught:
        receive(uploads, *parts, **options)
    assert list_files(uploads) == before
    return caught.value.detail


def test_a_body_is_stored(uploads):
    stored = receive(uploads, b"wei", b"", b"ghts")
    assert stored.is_new
    assert stored.num_bytes == 7
    assert uploads.checkpoints.locate_blob(stored.sha256).read_bytes() == b"weights"
    assert not receive(uploads, b"weights").is_new


@pytest.mark.parametrize("headers", [{}, {"Content_Length": "0"}])
def test_nothing_is_no_file(uploads, headers):
    assert refused(BadRequest, uploads, **headers) == "body: expected a file, got nothing"


def test_it_is_written_in_pieces_off_the_loop(uploads, monkeypatch):
    pieces, write = [], Upload.write

    def note(upload, piece):
        pieces.append((len(piece), threading.current_thread() is threading.main_thread()))
        write(upload, piece)

    monkeypatch.setattr(Upload, "write", note)
    content = os.urandom(LIMIT)
    parts = [content[place : place + 60_000] for place in range(0, LIMIT, 60_000)]
    assert receive(uploads, *parts).sha256 == hashlib.sha256(content).hexdigest()
    assert len(pieces) == 3
    assert max(size for size, _ in pieces) < PIECE_BYTES + 60_000
    assert not any(is_main for _, is_main in pieces)


def test_others_are_answered_while_a_piece_is_written(uploads, monkeypatch):
    is_writing, may_end, write = threading.Event(), threading.Event(), Upload.write

    def slow(upload, piece):
        is_writing.set()
        may_end.wait()
        write(upload, piece)

    monkeypatch.setattr(Upload, "write", slow)

    async def run():
        going = asyncio.create_task(uploads.receive(Body(b"weights").request, "mine", WEIGHTS))
        while not is_writing.is_set():
            await asyncio.sleep(0)
        assert await uploads.ask(uploads.checkpoints.describe_all) == {}
        may_end.set()
        return await going

    assert asyncio.run(run()).num_bytes == 7


@pytest.mark.parametrize(
    ("file", "limit"), [(WEIGHTS, LIMIT), ("config.json", 1 << 24), ("card.json", 1 << 24), ("tokenizer.json", 1 << 26)]
)
def test_what_is_declared_too_large_is_not_read(uploads, file, limit):
    body = None

    async def run():
        nonlocal body
        body = Body(Content_Length=str(limit + 1))
        await uploads.receive(body.request, "mine", file)

    with pytest.raises(TooLarge) as caught:
        asyncio.run(run())
    assert caught.value.detail == f"body: expected at most {limit} bytes, got more"
    assert body.num_asked == 0
    assert not uploads.checkpoints.folder.exists()


@pytest.mark.parametrize("headers", [{}, {"Content_Length": "3"}])
def test_what_is_too_large_is_read_no_further(uploads, headers):
    piece = bytes(PIECE_BYTES)
    said = refused(TooLarge, uploads, piece, piece, piece, b"1", *[piece] * 100, **headers)
    assert said == f"body: expected at most {LIMIT} bytes, got more"
    assert receive(uploads, piece, piece, piece).num_bytes == LIMIT


def test_digests_are_compared(uploads):
    digest = hashlib.sha256(b"weights").digest()
    right, wrong = f"sha-256=:{base64.b64encode(digest).decode()}:", f"sha-256=:{'A' * 43}=:"
    assert refused(BadRequest, uploads, b"weights", Content_Digest="md5").startswith("Content-Digest: expected sha-256")
    said = refused(BadRequest, uploads, b"weights", Content_Digest=wrong)
    assert said == f"Content-Digest: expected content with {'0' * 64}, got {digest.hex()}"
    assert receive(uploads, b"weights", Content_Digest=right).sha256 == digest.hex()


def test_names_are_checked_before_the_body(uploads):
    said = refused(Invalid, uploads, b"weights", name="..", file=WEIGHTS)
    assert said.startswith("name: expected letters, digits, ")
    assert refused(Invalid, uploads, b"weights", file="model.pt").startswith("file: expected one of config.json, ")
    (uploads.checkpoints.folder / "theirs").mkdir(parents=True)
    (uploads.checkpoints.folder / "theirs" / "config.json").touch()
    assert refused(Conflict, uploads, b"weights", name="theirs").startswith("name: expected one that is free")


def test_conditions_hold_before_the_body_and_after_it(uploads):
    tag = f'"{receive(uploads, b"weights").sha256}"'
    assert refused(PreconditionFailed, uploads, b"other", If_None_Match="*").startswith("If-None-Match: ")
    assert not receive(uploads, b"other", If_Match=tag).is_new

    async def race():
        slow = Body(end=False, If_None_Match="*")
        going = asyncio.create_task(uploads.receive(slow.request, "contested", WEIGHTS))
        while not slow.num_asked:
            await asyncio.sleep(0)
        await uploads.receive(Body(b"faster").request, "contested", WEIGHTS)
        slow.send(b"slower", more=False)
        with pytest.raises(PreconditionFailed):
            await going

    asyncio.run(race())
    assert (uploads.checkpoints.folder / "contested" / WEIGHTS).read_bytes() == b"faster"


def test_a_client_who_leaves_leaves_nothing(uploads):
    async def run():
        body = Body(bytes(PIECE_BYTES), b"some", end=False)
        body.leave()
        await uploads.receive(body.request, "mine", WEIGHTS)

    with pytest.raises(ClientDisconnect):
        asyncio.run(run())
    assert list_files(uploads) == []


def test_a_client_who_says_nothing_is_given_up(uploads):
    uploads.patience_seconds = 0.01

    async def run():
        await uploads.receive(Body(b"some", end=False).request, "mine", WEIGHTS)

    with pytest.raises(DeadlineExceeded) as caught:
        asyncio.run(run())
    assert caught.value.detail == "nothing of the body has come for 0.01 s"
    assert list_files(uploads) == []


@pytest.mark.parametrize("step", ["check_place", "open", "write", "commit"])
def test_who_is_cancelled_in_any_step_leaves_nothing(uploads, monkeypatch, step):
    """As at a deadline. The thread cannot be stopped: what it does then must not be left behind."""
    began, may_end = threading.Event(), threading.Event()
    kind = Checkpoints if step == "check_place" else Upload
    work = getattr(kind, step)

    def slow(*arguments):
        began.set()
        may_end.wait()
        return work(*arguments)

    async def run():
        with monkeypatch.context() as patched:
            patched.setattr(kind, step, slow)
            going = asyncio.create_task(uploads.receive(Body(b"weights").request, "mine", WEIGHTS))
            while not began.is_set():
                await asyncio.sleep(0)
            going.cancel()
            for _ in range(10):
                await asyncio.sleep(0)
            may_end.set()
            with pytest.raises(asyncio.CancelledError):
                await going

    asyncio.run(run())
    uploads.close()
    assert list_files(uploads) == []


def test_few_at_a_time(uploads):
    async def run():
        bodies = [Body(end=False) for _ in range(MAX_UPLOADS)]
        going = [
            asyncio.create_task(uploads.receive(body.request, f"mine-{index}", WEIGHTS))
            for index, body in enumerate(bodies)
        ]
        while not all(body.num_asked for body in bodies):
            await asyncio.sleep(0)
        one_more = Body(b"weights")
        with pytest.raises(Overloaded) as caught:
            await uploads.receive(one_more.request, "mine", WEIGHTS)
        assert caught.value.detail == "4 uploads are under way and at most 4 may"
        assert caught.value.headers == {"Retry-After": "5"}
        assert caught.value.reason == "uploads"
        assert one_more.num_asked == 0
        for body in bodies:
            body.send(b"weights", more=False)
        await asyncio.gather(*going)
        return await uploads.receive(Body(b"weights").request, "mine", WEIGHTS)

    assert asyncio.run(run()).is_new


@pytest.mark.parametrize(
    ("number", "error", "said"),
    [
        (errno.ENOSPC, InsufficientStorage, "the disk of uploaded checkpoints is full: No space left on device"),
        (errno.EDQUOT, InsufficientStorage, "the disk of uploaded checkpoints is full: Disk quota exceeded"),
        (errno.EFBIG, InsufficientStorage, "the disk of uploaded checkpoints is full: File too large"),
        (errno.EROFS, Unavailable, "uploaded checkpoints cannot be read or written: Read-only file system"),
        (errno.EACCES, Unavailable, "uploaded checkpoints cannot be read or written: Permission denied"),
        (errno.EIO, Unavailable, "uploaded checkpoints cannot be read or written: Input/output error"),
    ],
)
@pytest.mark.parametrize("step", ["open", "write", "commit"])
def test_what_a_disk_says(uploads, monkeypatch, caplog, step, number, error, said):
    work = getattr(Upload, step)

    def fail(upload, *arguments):
        if step == "write":
            work(upload, *arguments)
        raise OSError(number, os.strerror(number), "/secret/place")

    monkeypatch.setattr(Upload, step, fail)
    assert refused(error, uploads, b"weights") == said
    # Where, only the log says.
    assert str(uploads.checkpoints.folder) in caplog.text


def test_a_place_that_cannot_be_made_is_said_and_nothing_else(tmp_path):
    (tmp_path / "file").touch()
    uploads = Uploads(Checkpoints(tmp_path / "file" / "checkpoints"), max_weights_bytes=LIMIT)
    assert refused(Unavailable, uploads, b"weights").startswith("uploaded checkpoints cannot be read or written: ")
    uploads.close()


def test_more_than_is_free_is_refused_before_it_is_read(uploads):
    uploads.max_weights_bytes = 1 << 62
    said = refused(InsufficientStorage, uploads, Content_Length=str(1 << 59))
    assert said.endswith("No space left on device")


def test_what_the_store_does_not_have(uploads):
    async def run():
        with pytest.raises(NotFound) as caught:
            await uploads.ask(uploads.checkpoints.remove, "mine")
        return caught.value.detail

    assert asyncio.run(run()) == "name: expected one that was uploaded, got 'mine'"


def test_it_is_swept_at_the_start_and_every_hour_whatever_happens(uploads, monkeypatch, caplog):
    swept, naps = [], []

    def sweep(checkpoints, now):
        swept.append(checkpoints)
        if len(swept) == 1:
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    async def nap(seconds):
        naps.append(seconds)
        if len(naps) == 2:
            raise asyncio.CancelledError

    monkeypatch.setattr(module, "sweep", sweep)
    monkeypatch.setattr(module.asyncio, "sleep", nap)
    with pytest.raises(asyncio.CancelledError):
        asyncio.run(uploads.keep_clean())
    assert swept == [uploads.checkpoints] * 2
    assert naps == [3600.0] * 2
    assert "uploads cannot be swept: " in caplog.text

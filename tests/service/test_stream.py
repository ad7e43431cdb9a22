"""Continuations as server-sent events and as one answer, from a model that says what the test tells it to."""

import asyncio
import contextlib
import json
from types import SimpleNamespace

import numpy as np
import pytest
from starlette.requests import ClientDisconnect

from attnserve.service.deadline import Deadline
from attnserve.service.formats.negotiation import EVENTS, JSON
from attnserve.service.job import LogitsAnswer
from attnserve.service.preprocess import parse_predict
from attnserve.service.problems import Invalid, Overloaded, Unavailable
from attnserve.service.sequences import Reader
from attnserve.service.stages import Stages
from attnserve.service.stream import answer_continuation
from attnserve.text import TextReader
from tests.kinds import END, make_tokenizer

TOKENIZER = make_tokenizer()
SIZE = TOKENIZER.get_vocab_size()
FAMILY = "\N{WOMAN}\N{ZERO WIDTH JOINER}\N{GIRL}"
UNKNOWN = "\ufffd"
NEVER = Deadline(start=0.0, scope=asyncio.Timeout(None))


def read(text: str) -> list[int]:
    return TOKENIZER.encode(text).ids


class Script:
    """Stands in for a model's queue: after what was read it says the ids of a script, whoever asks."""

    def __init__(self, *scripts, starts, error=None, fails_at=None):
        self.scripts, self.starts = scripts, starts
        self.error, self.fails_at = error, fails_at
        self.num_steps = 0
        self.gate = None
        self.announced = []
        """Steps that sequences were said to grow by, at every step."""

    def enqueue(self, jobs, **options):
        return asyncio.ensure_future(self.answer(jobs, **options))

    async def answer(self, jobs, *, stages, is_begun, num_more, **_):
        self.announced.append(num_more)
        # Only what was let in before is let in whatever waits.
        assert is_begun == (self.num_steps > 0)
        if self.gate is not None:
            await self.gate()
        if self.num_steps == self.fails_at:
            raise self.error
        stages.add("queue", self.num_steps, self.num_steps + 0.25)
        stages.add("compute", self.num_steps + 0.25, self.num_steps + 0.75)
        self.num_steps += 1
        answers = []
        for job, script, start in zip(jobs, self.scripts, self.starts, strict=True):
            logits = np.zeros((1, SIZE), np.float32)
            logits[0, script[len(job.sequence) - start]] = 1
            answers.append(LogitsAnswer(logits=logits, captures={}))
        return answers


class Connection:
    """A request whose client stays until told to leave, and the memory its answer holds."""

    def __init__(self):
        self.left = asyncio.Event()
        self.num_held = 0
        self.stages = Stages()
        self.scope = {"stages": self.stages}

    async def receive(self):
        await self.left.wait()
        return {"type": "http.disconnect"}

    @contextlib.contextmanager
    def hold(self):
        self.num_held += 1
        try:
            yield
        finally:
            self.num_held -= 1


@pytest.fixture(scope="module")
def reader(make_manifest, tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "tokenizer.json"
    path.write_text(TOKENIZER.to_str(), "utf-8")
    return Reader(make_manifest(vocabulary_size=SIZE, max_length=1000, warnings=("odd",)), TextReader(path))


def start(reader, sequences, scripts, *, seed=None, **options):
    """A model that will say the scripts, and the request for all of them."""
    document = {"sequences": sequences, "continue": len(scripts[0])}
    asked = parse_predict(json.dumps(document if seed is None else {**document, "seed": seed}).encode(), reader)
    script = Script(*scripts, starts=asked.lengths, **options)
    model = SimpleNamespace(name="m", version=3, batcher=script, reader=reader, manifest=reader.manifest)
    return model, asked


def run(model, asked, media_type):
    """The whole body of an answer."""

    async def talk():
        connection = Connection()
        response = await answer_continuation(connection, model, asked, media_type, connection.hold, NEVER)
        body = response.body if media_type == JSON else b"".join([part async for part in response.body_iterator])
        assert connection.num_held == 0
        return response, body

    response, body = asyncio.run(talk())
    assert response.headers["content-type"].partition(";")[0] == media_type
    return body


def parse_events(body: bytes) -> list[tuple[str, dict]]:
    """As https://html.spec.whatwg.org/multipage/server-sent-events.html has it, for the fields in use."""
    assert body.endswith(b"\n\n")
    events = []
    for block in body.decode().removesuffix("\n\n").split("\n\n"):
        (name, data) = block.split("\n")
        assert (name[:7], data[:6]) == ("event: ", "data: ")
        events.append((name[7:], json.loads(data[6:])))
    return events


def stream(reader, sequences, scripts, **options):
    model, asked = start(reader, sequences, scripts, **options)
    return parse_events(run(model, asked, EVENTS))


def test_events_are_the_answer_in_pieces(reader):
    sequences, scripts = ["the cat", [1, 2]], [read(" cat"), read("x")]
    events = stream(reader, sequences, scripts)
    assert [name for name, _ in events] == ["token", "token", "done"]
    whole = json.loads(run(*start(reader, sequences, scripts), JSON))
    assert events[-1][1] == whole
    assert (whole["model"], whole["version"], whole["seed"], whole["warnings"]) == ("m", 3, None, ["odd"])
    assert [[token["text"] for token in tokens] for tokens in whole["tokens"]] == [["t", "he", " cat"], ["!", '"']]
    for index, event in enumerate(data for _, data in events[:-1]):
        said = whole["continuations"][index]
        assert event == {
            "sequence": index,
            "step": said["steps"][0],
            **said["tokens"][0],
            "text": [" cat", "x"][index],
        }
        assert said["text"] == event["text"]
    # No text was sent, so no token of it is named.
    assert "tokens" not in stream(reader, [[1, 2]], [read("x")])[-1][1]


TEXTS = {
    "plain": "at the cat",
    "an emoji": "a \N{GRINNING FACE}!",
    "joined": f"x{FAMILY}",
    "accents": "e\N{COMBINING ACUTE ACCENT}\N{LATIN SMALL LETTER E WITH ACUTE}",
    "right to left": "\N{HEBREW LETTER ALEF}\N{HEBREW LETTER BET}\N{ARABIC LETTER MEEM}",
    "many bytes": "\N{CJK UNIFIED IDEOGRAPH-65E5}\N{CJK UNIFIED IDEOGRAPH-672C}cat",
    "lines": "a\nb\r\nc\x85d\u2028e\x00",
    "an unknown character of its own": f"a{UNKNOWN}b",
    "an end of its own": f"a{END}b",
}


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS)
@pytest.mark.parametrize("beginning", ["cat", f"x{UNKNOWN}", "", FAMILY], ids=ascii)
def test_texts_of_the_events_add_up(reader, text, beginning):
    first = beginning or read("t")
    events = stream(reader, [first], [read(text)])
    parts = [event["text"] for name, event in events if name == "token"]
    assert "".join(parts) == events[-1][1]["continuations"][0]["text"] == text.replace(END, "")
    # A part of a character is never shown, and nothing is held back that is complete.
    assert UNKNOWN not in parts
    for index, part in enumerate(parts):
        shown = TOKENIZER.decode(read(text)[: index + 1]).rstrip(UNKNOWN)
        assert "".join(parts[: index + 1]) == shown, part


@pytest.mark.parametrize("num_missing", [1, 2, 3])
def test_an_end_inside_a_character_is_held_back(reader, num_missing):
    script = read("a\N{GRINNING FACE}")[:-num_missing]
    events = stream(reader, ["x"], [script])
    assert [event["text"] for name, event in events if name == "token"] == ["a", *[""] * (4 - num_missing)]
    assert events[-1][1]["continuations"][0]["text"] == "a" + UNKNOWN * TOKENIZER.decode(script).count(UNKNOWN)


@pytest.mark.parametrize("num_given", [1, 2, 3])
def test_ids_that_end_inside_a_character_are_completed(reader, num_given):
    ids = read("a\N{GRINNING FACE}b")
    events = stream(reader, [ids[: 1 + num_given]], [ids[1 + num_given :]])
    parts = [event["text"] for name, event in events if name == "token"]
    assert "".join(parts) == events[-1][1]["continuations"][0]["text"] == "\N{GRINNING FACE}b"


def test_what_is_no_text_at_all_is_shown_once_it_cannot_become_any(reader):
    emoji, letter = read("\N{GRINNING FACE}"), read("x")
    events = stream(reader, ["a"], [[*emoji[:2], *letter, emoji[3], *letter]])
    parts = [event["text"] for name, event in events if name == "token"]
    assert parts == ["", "", f"{UNKNOWN}x", "", f"{UNKNOWN}x"]
    assert events[-1][1]["continuations"][0]["text"] == "".join(parts)


def test_a_model_without_text_has_none(make_manifest):
    reader = Reader(make_manifest(vocabulary_size=SIZE))
    events = stream(reader, [[1]], [[5, 6]])
    assert [event["text"] for name, event in events if name == "token"] == [None, None]
    assert [event["label"] for name, event in events if name == "token"] == [None, None]
    assert events[-1][1]["continuations"][0]["text"] is None


def test_many_sequences_are_written_off_the_event_loop_and_the_same(reader, monkeypatch):
    sequences, scripts = [["cat", [1, 2, 3]][number % 2] for number in range(40)], [read(" cat the")] * 40
    few = stream(reader, sequences, scripts)
    monkeypatch.setattr("attnserve.service.stream.LARGE_NUM_TOKENS", 10)
    assert stream(reader, sequences, scripts) == few
    assert json.loads(run(*start(reader, sequences, scripts), JSON)) == few[-1][1]


@pytest.mark.parametrize("media_type", [EVENTS, JSON])
def test_where_the_time_of_all_steps_went(reader, media_type):
    model, asked = start(reader, ["a"], [read("cat cat at")])

    async def talk():
        connection = Connection()
        response = await answer_continuation(connection, model, asked, media_type, connection.hold, NEVER)
        begun = connection.stages.describe()
        if media_type == EVENTS:
            # The head goes out now, with the first step.
            assert begun == "queue;dur=250.000, compute;dur=500.000"
            assert [part async for part in response.body_iterator]
        return connection.stages

    stages = asyncio.run(talk())
    count = len(read("cat cat at"))
    assert stages.describe() == f"queue;dur={250 * count}.000, compute;dur={500 * count}.000"
    assert [(stage.begin, stage.end, stage.count) for stage in stages.all] == [
        (0, count - 0.75, count),
        (0.25, count - 0.25, count),
    ]


@pytest.mark.parametrize("media_type", [JSON, EVENTS])
def test_what_will_become_of_a_sequence_is_said_before_it_begins(reader, media_type):
    model, asked = start(reader, [[1, 2], [3]], [[5, 6, 7], [7, 8, 9]])
    run(model, asked, media_type)
    assert model.batcher.announced == [2, 1, 0]


@pytest.mark.parametrize("error", [Overloaded("full"), Unavailable("stopped")], ids=lambda error: error.title)
def test_an_error_in_the_middle_is_an_event(reader, error):
    events = stream(reader, ["a"], [read("cat cat at")], error=error, fails_at=2)
    assert [name for name, _ in events] == ["token", "token", "error"]
    assert events[-1][1]["status"] == error.status
    assert events[-1][1]["detail"] == error.detail


@pytest.mark.parametrize(("media_type", "fails_at"), [(EVENTS, 0), (JSON, 0), (JSON, 2)])
def test_an_error_before_the_answer_begins_is_a_status(reader, media_type, fails_at):
    model, asked = start(reader, ["a"], [read("cat cat at")], error=Overloaded("full"), fails_at=fails_at)
    with pytest.raises(Overloaded):
        run(model, asked, media_type)


def test_memory_that_is_short_in_the_middle_is_an_event_too(reader):
    model, asked = start(reader, ["a"], [read("cat")])

    holds = iter([contextlib.nullcontext(), None])

    def hold():
        held = next(holds)
        if held is None:
            raise Overloaded("no memory")
        return held

    async def scarce():
        response = await answer_continuation(Connection(), model, asked, EVENTS, hold, NEVER)
        return b"".join([part async for part in response.body_iterator])

    events = parse_events(asyncio.run(scarce()))
    assert [name for name, _ in events] == ["error"]


def test_an_answer_that_overflows_is_refused(reader):
    model, asked = start(reader, ["a", "b"], [read("x")] * 2)

    async def overflow():
        logits = np.zeros((1, SIZE), np.float32)
        return [LogitsAnswer(logits=logits, captures={}), LogitsAnswer(logits=logits + np.nan, captures={})]

    model.batcher.enqueue = lambda jobs, **_: asyncio.ensure_future(overflow())
    with pytest.raises(Invalid, match=r"sequences\[1\]: expected a sequence to which the model has a finite answer"):
        run(model, asked, JSON)


@pytest.mark.parametrize("num_heard", [1, 3])
def test_a_client_who_leaves_a_stream_stops_the_work(reader, num_heard):
    model, asked = start(reader, ["a"], [read("x" * 50)])

    async def talk():
        connection = Connection()
        response = await answer_continuation(connection, model, asked, EVENTS, connection.hold, NEVER)
        heard = []

        async def leave_in_time():
            if len(heard) == num_heard:
                connection.left.set()
                # Work that nobody waits for any more is cancelled here.
                await asyncio.Event().wait()

        model.batcher.gate = leave_in_time
        async for part in response.body_iterator:
            heard.append(part)
        assert connection.num_held == 0
        return heard

    heard = asyncio.run(talk())
    assert len(heard) == num_heard
    assert model.batcher.num_steps == num_heard


def test_a_server_that_ends_a_stream_stops_the_work(reader):
    model, asked = start(reader, ["a"], [read("x" * 50)])

    async def talk():
        connection = Connection()
        response = await answer_continuation(connection, model, asked, EVENTS, connection.hold, NEVER)
        assert connection.num_held == 0
        async for _ in response.body_iterator:
            assert connection.num_held == 1
            if model.batcher.num_steps == 4:
                break
        # What Starlette leaves behind when it cancels the sending is closed by the event loop.
        await response.body_iterator.aclose()
        assert connection.num_held == 0

    asyncio.run(talk())
    assert model.batcher.num_steps == 4


def test_a_client_who_leaves_before_the_end_of_one_answer_stops_the_work(reader):
    model, asked = start(reader, ["a"], [read("x" * 50)])

    async def talk():
        connection = Connection()

        async def leave_in_time():
            if model.batcher.num_steps == 5:
                connection.left.set()
                await asyncio.Event().wait()

        model.batcher.gate = leave_in_time
        with pytest.raises(ClientDisconnect):
            await answer_continuation(connection, model, asked, JSON, connection.hold, NEVER)
        assert connection.num_held == 0

    asyncio.run(talk())
    assert model.batcher.num_steps == 5

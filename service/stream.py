"""Continuations on the wire: one JSON answer, or server-sent events while the model goes on."""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, TypeVar

import orjson
from fastapi import Request, Response
from fastapi.responses import StreamingResponse
from starlette.requests import ClientDisconnect

from attnserve.service.body import while_connected
from attnserve.service.continuation import Generated, continue_sequences
from attnserve.service.deadline import Deadline
from attnserve.service.formats.negotiation import EVENTS, JSON
from attnserve.service.job import Answer, Job
from attnserve.service.model import ServedModel
from attnserve.service.prediction import describe_entry
from attnserve.service.preprocess import PredictRequest
from attnserve.service.problems import Problem, describe_problem
from attnserve.service.routing import get_stages
from attnserve.service.sequences import Input, Reader

FORMATS = (JSON, EVENTS)
# A proxy must pass events on as they come, and keep none of them.
EVENT_HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
UNKNOWN = "\ufffd"
# Tokens beyond these are decoded and written off the event loop, so that others are answered meanwhile. Those that
# were read count too: a text is decoded as a whole.
LARGE_NUM_TOKENS = 128

Result = TypeVar("Result")
Hold = Callable[[], AbstractContextManager[None]]


class _Grown:
    """What one sequence has become."""

    def __init__(self, read: Input, reader: Reader) -> None:
        self.reader = reader
        self.ids: list[int] = read.values.tolist()
        self.num_read = len(self.ids)
        self.tokens: list[dict[str, Any]] = []
        text = self._decode()
        # Ids may end inside a character, and the first that is added may complete it.
        self._start = self._shown = len(text if read.text is not None else text.rstrip(UNKNOWN))

    def add(self, token: Generated) -> None:
        """Take the next token."""
        self.ids.append(token.id)
        self.tokens.append(describe_entry(token.id, token.logit, token.probability, self.reader.name_token))

    def describe_last(self) -> dict[str, Any]:
        """The last token, and the text that is complete by now and was not at the call before."""
        return {"step": len(self.ids) - 1, **self.tokens[-1], "text": self._new_text()}

    def describe(self) -> dict[str, Any]:
        """The whole continuation."""
        text = None if self.reader.text is None else self._decode()[self._start :]
        return {"steps": list(range(self.num_read, len(self.ids))), "tokens": self.tokens, "text": text}

    def _new_text(self) -> str | None:
        if self.reader.text is None:
            return None
        # A part of a character waits for the rest of it.
        text = self._decode().rstrip(UNKNOWN)
        new, self._shown = text[self._shown :], max(len(text), self._shown)
        return new

    def _decode(self) -> str:
        return "" if self.reader.text is None else self.reader.text.decode(self.ids)


def write_event(name: str, data: bytes, event_id: str | None = None) -> bytes:
    """A server-sent event.

    Args:
        name: of the kind of event.
        data: JSON, which has no line ends: they would end the data.
        event_id: that a client sends back, as the last one it has seen, when it comes again.
    """
    beginning = b"" if event_id is None else b"id: " + event_id.encode() + b"\n"
    return beginning + b"event: " + name.encode() + b"\ndata: " + data + b"\n\n"


async def answer_continuation(
    request: Request, model: ServedModel, asked: PredictRequest, media_type: str, hold: Hold, deadline: Deadline
) -> Response:
    """Continue every sequence of a request; the first step is done before the answer begins, so it may still fail.

    Args:
        request: to notice when its client leaves.
        model: that goes on.
        asked: with a continuation.
        media_type: one of `FORMATS`.
        hold: memory for the logits of a step.
        deadline: of the last token; a stream outlives the request that began it.
    """
    assert asked.continuation is not None
    stages, is_begun = get_stages(request), False
    # The first step asks for all: one that would outgrow a batch halfway does not begin.
    num_more = asked.continuation.num_tokens - 1

    async def submit(jobs: Sequence[Job]) -> list[Answer]:
        nonlocal is_begun, num_more
        working = model.batcher.enqueue(jobs, due=deadline.at, stages=stages, is_begun=is_begun, num_more=num_more)
        try:
            async with asyncio.timeout_at(deadline.at):
                answers = await while_connected(request, working)
        except TimeoutError:
            raise deadline.problem from None
        is_begun, num_more = True, num_more - 1
        return answers

    grown = await _compute(sum(asked.lengths), _begin, asked, model.reader)
    steps = continue_sequences(submit, [read.values for read in asked.inputs], asked.continuation)
    with hold():
        first = await anext(steps)
        if media_type == EVENTS:
            events = _stream(first, steps, grown, model, asked, hold)
            return StreamingResponse(events, headers=EVENT_HEADERS, media_type=EVENTS)
        _add(grown, first)
        async for tokens in steps:
            _add(grown, tokens)
        return Response(await _compute(_count(grown), _dump_whole, grown, model, asked), media_type=JSON)


async def _stream(
    first: list[Generated],
    steps: AsyncIterator[list[Generated]],
    grown: list[_Grown],
    model: ServedModel,
    asked: PredictRequest,
    hold: Hold,
) -> AsyncIterator[bytes]:
    assert asked.continuation is not None
    try:
        with hold():
            yield await _compute(_count(grown), _add_and_tell, grown, first)
            async for tokens in steps:
                yield await _compute(_count(grown), _add_and_tell, grown, tokens)
            whole = await _compute(_count(grown), _dump_whole, grown, model, asked)
    except Problem as problem:
        # The status is long sent.
        yield write_event("error", _dump(describe_problem(problem)))
    except ClientDisconnect:
        return
    else:
        yield write_event("done", whole)


async def _compute(num_tokens: int, work: Callable[..., Result], *arguments: Any) -> Result:
    return await asyncio.to_thread(work, *arguments) if num_tokens > LARGE_NUM_TOKENS else work(*arguments)


def _count(grown: list[_Grown]) -> int:
    return sum(len(sequence.ids) for sequence in grown)


def _begin(asked: PredictRequest, reader: Reader) -> list[_Grown]:
    return [_Grown(read, reader) for read in asked.inputs]


def _add(grown: list[_Grown], tokens: list[Generated]) -> None:
    for sequence, token in zip(grown, tokens, strict=True):
        sequence.add(token)


def _add_and_tell(grown: list[_Grown], tokens: list[Generated]) -> bytes:
    _add(grown, tokens)
    documents = ({"sequence": index, **sequence.describe_last()} for index, sequence in enumerate(grown))
    return b"".join(write_event("token", _dump(document)) for document in documents)


def _dump_whole(grown: list[_Grown], model: ServedModel, asked: PredictRequest) -> bytes:
    assert asked.continuation is not None
    document: dict[str, Any] = {
        "model": model.name,
        "version": model.version,
        "continuations": [sequence.describe() for sequence in grown],
        "seed": asked.continuation.seed if asked.continuation.temperature > 0 else None,
        "warnings": list(model.manifest.warnings),
    }
    if asked.has_text:
        document["tokens"] = [model.reader.list_tokens(read) for read in asked.inputs]
    return _dump(document)


def _dump(document: Any) -> bytes:
    return orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY)

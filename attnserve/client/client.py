"""`Client`: a service, from Python."""

import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self, Unpack
from urllib.parse import quote

from attnserve.address import API_KEY, URL, Names, choose_api_key, choose_url
from attnserve.client.answers import Generated, Model, Predicted, read_generated, read_model, read_predicted
from attnserve.client.attention import Attention, read_attention
from attnserve.client.capture import Capture
from attnserve.client.publishing import Export, Tell, push_folder, run_export
from attnserve.client.question import Indices, Question, to_json
from attnserve.client.transport import Transport
from attnserve.push import Pushed
from attnserve.remote import TIMEOUT_S, Remote

ARGUMENTS = Names(url=f"url ({URL})", api_key=f"api_key ({API_KEY})")

Sequences = Sequence[Any]
"""Per sequence ids, labels, a text, or vectors; arrays too."""


class Client:
    """A service.

    Threads may share it. What goes wrong is a `RemoteError` with `status`, `field` and what the service says; what is
    refused for a while (429, 503) is asked again when the service says.

    Args:
        url: of the service; that in `ATTNSERVE_URL` unless given, else this machine, port 8000.
        api_key: sent as `Authorization: Bearer`; that in `ATTNSERVE_API_KEY` unless given.
        timeout_s: of each wait for the service.
        max_wait_s: how long a question that is refused waits in all.
        compress: whether answers may be compressed, as pays over a slow network.
        wait: for so many seconds.

    Raises:
        ValueError: names the argument, what was expected and what came.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        api_key: str | None = None,
        timeout_s: float = TIMEOUT_S,
        max_wait_s: float = 60.0,
        compress: bool = False,
        wait: Callable[[float], object] = time.sleep,
    ) -> None:
        self._remote = Remote(
            url=choose_url(url, os.environ),
            api_key=choose_api_key(api_key, os.environ),
            timeout_s=timeout_s,
            keep=True,
            names=ARGUMENTS,
        )
        self._transport = Transport(self._remote, max_wait_s=max_wait_s, compress=compress, wait=wait)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Client({self._remote.url!r})"

    def close(self) -> None:
        """Close its connections."""
        self._remote.close()

    def models(self) -> list[Model]:
        """Every model of the repository."""
        return self._transport.ask_document(
            "GET", "/v1/models", read=lambda document: [read_model(each) for each in document["models"]]
        )

    def describe(self, model: str, *, version: int | None = None) -> Mapping[str, Any]:
        """What is known of a model: card, labels, layers, limits, certificate (docs/api.md)."""
        return self._transport.ask_document("GET", _place(model, version), read=dict)

    def predict(
        self,
        model: str,
        sequences: Sequences,
        *,
        version: int | None = None,
        top_k: int | None = None,
        positions: Indices | None = None,
        timeout_ms: float | None = None,
    ) -> Predicted:
        """Predict.

        Args:
            model: that is asked.
            sequences: a list of at least one.
            version: that one or none; the active one unless given.
            top_k: entries per position.
            positions: the last of each sequence, unless given; of a token classifier all.
            timeout_ms: a deadline.
        """
        body = _body(sequences, top_k=top_k, positions=positions, timeout_ms=timeout_ms)
        return self._transport.ask_document("POST", f"{_place(model, version)}/predict", body, read=read_predicted)

    def generate(
        self,
        model: str,
        sequences: Sequences,
        num_tokens: int,
        *,
        version: int | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        seed: int | None = None,
        timeout_ms: float | None = None,
    ) -> Generated:
        """Go on with every sequence, token by token.

        Args:
            model: one of the task next_token.
            sequences: a list of at least one.
            num_tokens: added to each.
            version: that one or none; the active one unless given.
            temperature: 0, which takes the likeliest, unless given.
            top_k: draw from so many of the likeliest.
            seed: of the draw.
            timeout_ms: a deadline.
        """
        fields = {"continue": num_tokens, "temperature": temperature, "seed": seed}
        body = _body(sequences, top_k=top_k, timeout_ms=timeout_ms, **fields)
        return self._transport.ask_document("POST", f"{_place(model, version)}/predict", body, read=read_generated)

    def attention(
        self,
        model: str,
        sequences: Sequences,
        *,
        version: int | None = None,
        top_k: int | None = None,
        positions: Indices | None = None,
        timeout_ms: float | None = None,
        **question: Unpack[Question],
    ) -> Attention:
        """Predict, and tell what heads attended to: diagnostics, unless another `quantity` is asked for.

        Args:
            model: that is asked.
            sequences: a list of at least one.
            version: that one or none; the active one unless given.
            top_k: as in `predict`.
            positions: as in `predict`.
            timeout_ms: a deadline.
            question: fields of docs/attention-api.md.

        Raises:
            ValueError: it is a dry run, which `plan` is for.
        """
        if "dry_run" in question:
            raise ValueError("dry_run: expected none; plan() says what an answer would be")
        body = _body(sequences, top_k=top_k, positions=positions, timeout_ms=timeout_ms, **question)
        return self._transport.ask_tensors("POST", f"{_place(model, version)}/attention", body, read=read_attention)

    def plan(
        self, model: str, sequences: Sequences, *, version: int | None = None, **question: Unpack[Question]
    ) -> Mapping[str, Any]:
        """What `attention` would answer, and what that costs, without a forward pass."""
        body = _body(sequences, dry_run=True, **question)
        return self._transport.ask_document("POST", f"{_place(model, version)}/attention", body, read=dict)

    def capture(
        self,
        model: str,
        sequence: Any,
        *,
        version: int | None = None,
        layers: Indices | None = None,
        store: str | None = None,
        keep_seconds: float | None = None,
        top_k: int | None = None,
        positions: Indices | None = None,
    ) -> Capture:
        """Predict, and have the service keep the queries and keys, to be asked about piece by piece.

        Args:
            model: that is asked.
            sequence: one.
            version: that one or none; the active one unless given.
            layers: kept; all unless given.
            store: "computed", or "float16" for half of the memory.
            keep_seconds: how long.
            top_k: as in `predict`.
            positions: as in `predict`.
        """
        fields = {"layers": layers, "store": store, "keep_seconds": keep_seconds}
        body = _body([sequence], top_k=top_k, positions=positions, **fields)
        return Capture(
            self._transport, lambda other: f"{_place(model, version if other is None else other)}/captures", body
        )

    def push(self, folder: str | os.PathLike[str], name: str | None = None, *, report: Tell | None = None) -> Pushed:
        """Send a checkpoint, as far as it is not there already.

        Args:
            folder: with config.json and model.safetensors.
            name: of the checkpoint there; that of the folder unless given.
            report: told how far it is; a bar where somebody looks, unless given.
        """
        path = Path(folder)
        return push_folder(path, path.resolve().name if name is None else name, self._remote, report)

    def export(
        self,
        checkpoint: str,
        model: str,
        version: int | None = None,
        *,
        precision: str = "float32",
        portable: bool = False,
        top_k: int | None = None,
        activate: bool = True,
        report: Tell | None = None,
    ) -> Export:
        """Have the service export a checkpoint, and wait until the model answers with it.

        Args:
            checkpoint: name of one that was pushed, or a path that the service may read.
            model: to which it is exported.
            version: of the model; the next one unless given.
            precision: of weights and activations.
            portable: whether there are no custom ops in the graph.
            top_k: likeliest ids or classes that the graph chooses itself.
            activate: whether the model answers with it then.
            report: told how far it is; a bar where somebody looks, unless given.

        Raises:
            ExportError: it failed or was cancelled, or the service cannot serve what it made.
            RemoteError: the service refuses, or is away for long.
        """
        return run_export(
            self._remote,
            checkpoint,
            model,
            version,
            precision=precision,
            portable=portable,
            top_k=top_k,
            activate=activate,
            tell=report,
            wait=self._transport.wait,
        )


def _place(model: str, version: int | None) -> str:
    place = f"/v1/models/{quote(model, safe='')}"
    return place if version is None else f"{place}/versions/{version}"


def _body(sequences: Sequences, **fields: Any) -> dict[str, Any]:
    if isinstance(sequences, str | bytes):
        raise ValueError(f"sequences: expected a list of sequences, got a single text; [{sequences[:16]!r}, ...]")
    body = {"sequences": sequences, **fields}
    return {name: to_json(name, value) for name, value in body.items() if value is not None}

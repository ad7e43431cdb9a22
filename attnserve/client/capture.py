"""`Capture`: one forward pass that a service keeps, to be asked many small questions."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from datetime import datetime
from email.message import Message
from types import TracebackType
from typing import Any, Self, TypeVar, Unpack
from urllib.parse import quote

from numpy.typing import NDArray

from attnserve.client.answers import Prediction, Token, read_predictions, read_tokens
from attnserve.client.attention import Attention, read_attention
from attnserve.client.question import Indices, Steps, View, to_parameters
from attnserve.client.tensors import Tensors
from attnserve.client.transport import Transport
from attnserve.remote import RemoteError

Answer = TypeVar("Answer")


@dataclass(frozen=True, kw_only=True, eq=False)
class QueriesAndKeys:
    """What makes the map of one head, by the formulas of docs/captures.md."""

    query: NDArray[Any]
    """[steps, channels], metric and rotation in it."""
    key: NDArray[Any]
    """[steps, channels]"""
    normaliser: NDArray[Any]
    """[steps]"""
    value_norm: NDArray[Any]
    """[steps]"""
    weighting: str
    scale: float
    epsilon: float
    softcap: float
    window: int
    causal: bool


class Capture:
    """Queries and keys of one forward pass, kept by the service until `expires`.

    One that is gone (it ended, or its replica did) is taken again, from the same version, by whatever needs it; deleted
    by `delete`, it is not. To be used in a `with` block, which deletes it.

    Args:
        transport: to the service.
        path: where captures of the version are taken.
        body: how it is taken.
    """

    def __init__(self, transport: Transport, path: Callable[[int | None], str], body: Mapping[str, Any]) -> None:
        self._transport = transport
        self._path = path
        self._body = body
        self._is_deleted = False
        self.document = self._take(None)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.delete()

    def __repr__(self) -> str:
        return (
            f"Capture({self.model}/{self.version}: {len(self.layers)} layers of {self.num_heads} heads, "
            f"{self.length} steps, until {self.expires:%H:%M:%S %Z})"
        )

    @property
    def id(self) -> str:
        """Of the capture; another one when it was taken again."""
        return str(self.document["id"])

    @property
    def expires(self) -> datetime:
        """When it ends."""
        return datetime.fromisoformat(self.document["expires"])

    @property
    def model(self) -> str:
        """That answered."""
        return str(self.document["model"])

    @property
    def version(self) -> int:
        """Of the model."""
        return int(self.document["version"])

    @property
    def prediction(self) -> Prediction:
        """Of the same forward pass."""
        return read_predictions(self.document["predictions"])[0]

    @property
    def tokens(self) -> tuple[Token, ...]:
        """What was read."""
        return read_tokens(self.document["tokens"])[0]

    @property
    def layers(self) -> list[int]:
        """Those that were kept."""
        return list(self.document["layers"])

    @property
    def num_heads(self) -> int:
        """Of each layer."""
        return int(self.document["num_heads"])

    @property
    def length(self) -> int:
        """Steps of the sequence: rows and columns of a map."""
        return int(self.document["length"])

    @property
    def num_zooms(self) -> int:
        """Levels of tiles; the last has a cell per weight."""
        return int(self.document["num_zooms"])

    def rows(self, layer: int, head: int, queries: Steps = "last", *, dtype: str = "float32") -> NDArray[Any]:
        """[queries, keys] of one head's map."""
        return self._view(f"rows/{layer}/{head}", queries=queries, dtype=dtype).arrays["weights"]

    def weights(self, layer: int, head: int, *, dtype: str = "float32") -> NDArray[Any]:
        """[steps, steps], the whole map of one head."""
        return self.rows(layer, head, "all", dtype=dtype)

    def tile(self, layer: int, head: int, zoom: int, y: int, x: int, *, dtype: str = "float32") -> NDArray[Any]:
        """[rows, columns], at most 256 each: zoom 0 is the whole map by its maxima."""
        return self._view(f"tiles/{layer}/{head}/{zoom}/{y}/{x}", dtype=dtype).arrays["tile"]

    def thumbnails(self, layers: Indices = "all", heads: Indices = "all", *, dtype: str = "float32") -> NDArray[Any]:
        """[layers, heads, rows, columns], the maps of all heads by their maxima, at most 64 x 64 each."""
        return self._view("thumbnails", layers=layers, heads=heads, dtype=dtype).arrays["thumbnails"]

    def qk(self, layer: int, head: int, *, dtype: str = "float32") -> QueriesAndKeys:
        """Queries and keys of one head, if the service shows them."""
        tensors = self._view(f"qk/{layer}/{head}", dtype=dtype)
        found = {**tensors.document, **tensors.arrays}
        return QueriesAndKeys(**{each.name: found[each.name] for each in fields(QueriesAndKeys)})

    def attention(self, **question: Unpack[View]) -> Attention:
        """Diagnostics and maps, as `Client.attention` answers them."""
        path = f"attention{to_parameters(question)}"

        def read(tensors: Tensors, headers: Message) -> Attention:
            told = {name: self.document[name] for name in ("model", "version", "predictions", "tokens", "warnings")}
            return read_attention(tensors, headers, told)

        return self._retaking(lambda: self._transport.ask_tensors("GET", f"{self._place}/{path}", read=read))

    def delete(self) -> None:
        """Let the service forget it now; whatever is asked then is an error."""
        if self._is_deleted:
            return
        self._is_deleted = True
        try:
            self._transport.ask("DELETE", self._place)
        except RemoteError as error:
            # It had ended by itself.
            if error.status not in (404, 410):
                raise

    def picture(self) -> bytes:
        """A PNG of all thumbnails, as the service draws it."""
        path = f"thumbnails{to_parameters({'format': 'png'})}"
        return self._retaking(lambda: self._transport.ask("GET", f"{self._place}/{path}", accept="image/png")).body

    def _repr_png_(self) -> bytes | None:
        # A notebook shows many objects after their time.
        return None if self._is_deleted else self.picture()

    @property
    def _place(self) -> str:
        return f"/v1/captures/{quote(self.id, safe='')}"

    def _take(self, version: int | None) -> dict[str, Any]:
        return self._transport.ask_document("POST", self._path(version), self._body, read=dict)

    def _view(self, path: str, **fields: Any) -> Tensors:
        query = to_parameters(fields)
        return self._retaking(
            lambda: self._transport.ask_tensors("GET", f"{self._place}/{path}{query}", read=lambda tensors, _: tensors)
        )

    def _retaking(self, ask: Callable[[], Answer]) -> Answer:
        """What `ask` answers, of a capture that is taken again where the service has it no more."""
        if self._is_deleted:
            raise ValueError("capture: expected one that is kept, got one that was deleted")
        try:
            return ask()
        except RemoteError as error:
            if error.status != 410:
                raise
        self.document = self._take(self.version)
        return ask()

"""Views: parts of a capture, as arrays and what they mean, and how they are written."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson
from fastapi import Response
from numpy.typing import NDArray

from attnserve.service.captures.capture import Capture
from attnserve.service.captures.pyramid import THUMBNAIL
from attnserve.service.formats.coding import DTYPES, SCALE, code, widen
from attnserve.service.formats.colours import sequential_palette
from attnserve.service.formats.headers import describe_array, describe_coding, describe_layers, describe_selection
from attnserve.service.formats.negotiation import JSON, PNG
from attnserve.service.formats.picture import Panel, draw_panels, encode_image, to_image
from attnserve.service.formats.respond import respond
from attnserve.service.formats.tensors import Written, write_tensors
from attnserve.service.pooling import find_factor
from attnserve.service.problems import TooLarge
from attnserve.service.selection import MAX_ENTRIES


# Without a repr: it is user data.
@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class View:
    """A part of a capture."""

    document: dict[str, Any]
    """The part that is JSON in every format."""
    arrays: dict[str, NDArray[np.float32]]
    """By name; the first ones are coded."""
    axes: tuple[str, ...]
    """Of the first."""
    num_coded: int = 1
    """How many are sent in the type asked for; the others are float32."""
    has_row_error: bool = True
    """Whether what a row loses by its coding means anything, as it does of weights."""
    selection: Mapping[str, Sequence[int]]
    """What it is of, for headers."""
    layers: Sequence[int]


@dataclass(frozen=True, kw_only=True)
class Size:
    """How large a view is, known before it is computed, and how it is written."""

    field: str
    """Of what there would be less."""
    num_values: int
    media_type: str
    coding: str

    @property
    def held_bytes(self) -> int:
        """Memory until it is sent: as it is, coded, and as a body."""
        return self.num_values * (4 + 2 * DTYPES[self.coding].itemsize)

    def check(self, max_response_bytes: int) -> None:
        """Refuse what would be too large.

        Raises:
            TooLarge: names the limit and a cheaper way to ask.
        """
        if self.media_type == JSON and self.num_values > MAX_ENTRIES:
            raise TooLarge.about(
                self.field,
                f"a JSON answer may hold at most {MAX_ENTRIES} numbers, this one needs {self.num_values}; ask for "
                "fewer, or send Accept: application/x-safetensors",
            )
        num_bytes = self.num_values * DTYPES[self.coding].itemsize
        if num_bytes > max_response_bytes:
            message = f"an answer may hold at most {max_response_bytes} bytes, this one needs {num_bytes}"
            raise TooLarge.about(self.field, f"{message}; ask for fewer")


def view_rows(capture: Capture, layer: int, head: int, steps: NDArray[np.int64]) -> View:
    """Rows of one head's map."""
    return View(
        document={**_describe(capture), "layer": layer, "head": head, "queries": steps.tolist()},
        arrays={"weights": capture.head(layer, head).rows(steps)},
        axes=("query", "key"),
        selection={"layers": [layer], "heads": [head], "queries": steps.tolist()},
        layers=[layer],
    )


def view_tile(capture: Capture, layer: int, head: int, zoom: int, y: int, x: int) -> View:
    """A tile of one head's map."""
    of = capture.head(layer, head)
    rows, keys = of.pyramid.span(zoom, y), of.pyramid.span(zoom, x)
    place = {"zoom": zoom, "y": y, "x": x, "factor": of.pyramid.factor(zoom)}
    spans = {"queries": [rows.start, rows.stop], "keys": [keys.start, keys.stop]}
    return View(
        document={**_describe(capture), "layer": layer, "head": head, **place, **spans},
        arrays={"tile": of.tile(zoom, y, x)},
        axes=("query", "key"),
        selection={"layers": [layer], "heads": [head]},
        layers=[layer],
    )


def thumbnail_size(length: int) -> int:
    """Rows, and columns, of a map's thumbnail."""
    return -(-length // find_factor(length, THUMBNAIL))


def view_thumbnails(capture: Capture, layers: list[int], heads: list[int]) -> View:
    """The whole maps of heads, small; to be computed head by head before, as it takes long."""
    thumbnails = [[capture.head(layer, head).thumbnail() for head in heads] for layer in layers]
    factor = find_factor(capture.length, THUMBNAIL)
    return View(
        document={**_describe(capture), "layers": layers, "heads": heads, "factor": factor},
        arrays={"thumbnails": np.array(thumbnails)},
        axes=("layer", "head", "query", "key"),
        selection={"layers": layers, "heads": heads},
        layers=layers,
    )


def view_qk(capture: Capture, layer: int, head: int) -> View:
    """Queries and keys of one head, and what it takes to make its map of them."""
    kept, of = capture.layers[layer], capture.head(layer, head)
    attends = ("weighting", "scale", "epsilon", "softcap", "window", "causal")
    return View(
        document={
            **_describe(capture),
            "layer": layer,
            "head": head,
            **{name: getattr(kept.layer, name) for name in attends},
        },
        arrays={
            "query": widen(of.query),
            "key": widen(of.key),
            "normaliser": of.normaliser(),
            "value_norm": kept.value_norm[head],
        },
        axes=("step", "channel"),
        num_coded=2,
        has_row_error=False,
        selection={"layers": [layer], "heads": [head]},
        layers=[layer],
    )


def write_view(
    capture: Capture, view: View, coding: str, media_type: str, encoding: str, headers: Mapping[str, str]
) -> Response:
    """A view on the wire.

    Args:
        capture: that it is of.
        view: what is asked for.
        coding: of its first arrays.
        media_type: one of `negotiation.FORMATS`.
        encoding: how to compress it.
        headers: more of them.
    """
    if media_type == JSON:
        text = orjson.dumps(
            {**view.document, **{name: np.ascontiguousarray(array) for name, array in view.arrays.items()}},
            option=orjson.OPT_SERIALIZE_NUMPY,
        )
        return respond(Written(parts=[text]), media_type, encoding, headers)
    kept = [capture.layers[index].layer for index in view.layers]
    first = next(iter(view.arrays.values()))
    described = {
        **describe_layers(kept, causal=kept[0].causal),
        **describe_selection(**view.selection),
        **describe_array(first.shape, view.axes),
    }
    if media_type == PNG:
        return respond(Written(parts=[_draw(view)]), media_type, encoding, {**headers, **described})
    named, row_error = {}, 0.0
    for place, (name, array) in enumerate(view.arrays.items()):
        coded = code(array, coding if place < view.num_coded else "float32")
        named[name] = coded.values
        if coded.scale is not None:
            named[f"{name}.{SCALE}"] = coded.scale
        row_error = max(row_error, coded.row_error)
    described |= describe_coding(coding, row_error if view.has_row_error else None)
    return respond(write_tensors(view.document, named, media_type), media_type, encoding, {**headers, **described})


def _describe(capture: Capture) -> dict[str, Any]:
    return {"capture": str(capture.id), "model": capture.model, "version": capture.version}


def _draw(view: View) -> bytes:
    if "tile" in view.arrays:
        # Bare, to be laid beside others; all in the colours of the same scale.
        return encode_image(to_image(view.arrays["tile"], 1.0, sequential_palette(), is_signed=False))
    document = view.document
    caption = f"{document['model']} version {document['version']}: weights"
    if "weights" in view.arrays:
        title = f"layer {document['layer']} head {document['head']}"
        return draw_panels([Panel(title=title, values=view.arrays["weights"])], num_columns=1, caption=caption)
    thumbnails, heads = view.arrays["thumbnails"], document["heads"]
    panels = [
        Panel(title=f"{layer}.{head}", values=thumbnails[row, column])
        for row, layer in enumerate(document["layers"])
        for column, head in enumerate(heads)
    ]
    return draw_panels(panels, num_columns=len(heads), caption=f"{caption} by layer.head")

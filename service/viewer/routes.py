"""The viewer: a page that shows in a browser what heads look at. Its files know no model, and nothing of any user.

The page asks what every client may ask: captures, thumbnails, tiles, rows, diagnostics. It has no route of its own.
"""

import hashlib
from dataclasses import dataclass
from importlib import resources
from pathlib import PurePath

from fastapi import APIRouter, Request, Response

from attnserve.service.guard import Need, needs
from attnserve.service.problems import NotFound
from attnserve.service.routing import PlainRoute, get, has_already

PAGE = "index.html"
TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
}
POLICY = {
    "default-src": "'none'",
    "script-src": "'self'",
    "style-src": "'self'",
    "img-src": "'self' blob: data:",
    "connect-src": "'self'",
    "base-uri": "'none'",
    "form-action": "'none'",
    "frame-ancestors": "'self'",
}
"""Scripts and styles of the service alone, none inside the page, and nothing of another host."""
HEADERS = {
    "Content-Security-Policy": "; ".join(f"{name} {value}" for name, value in POLICY.items()),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    # Asked again each time, and answered 304: files of two releases do not fit together.
    "Cache-Control": "no-cache",
}

router = APIRouter(route_class=PlainRoute)


@dataclass(frozen=True, kw_only=True)
class File:
    """A file of the page."""

    content: bytes
    media_type: str
    tag: str
    """Its `ETag`."""


def _read_files() -> dict[str, File]:
    files = {}
    for found in resources.files(__package__).iterdir():
        media_type = TYPES.get(PurePath(found.name).suffix)
        if media_type is not None:
            content = found.read_bytes()
            tag = f'"{hashlib.blake2b(content, digest_size=12).hexdigest()}"'
            files[found.name] = File(content=content, media_type=media_type, tag=tag)
    return files


# By name: a path of a request never becomes one of the disk.
FILES = _read_files()


@get(router, "/", include_in_schema=False)
@needs(Need.NOTHING)
async def show_page(request: Request) -> Response:
    """The page."""
    return _answer(request, FILES[PAGE])


@get(router, "/viewer/{file}", include_in_schema=False)
@needs(Need.NOTHING)
async def show_file(request: Request, file: str) -> Response:
    """What the page is made of."""
    found = FILES.get(file)
    if found is None or file == PAGE:
        expected = ", ".join(sorted(FILES.keys() - {PAGE}))
        raise NotFound.about("file", f"expected one of {expected}, got {file[:64]!r}")
    return _answer(request, found)


def _answer(request: Request, file: File) -> Response:
    headers = {**HEADERS, "ETag": file.tag}
    if has_already(request, file.tag):
        return Response(status_code=304, headers=headers)
    return Response(file.content, headers=headers, media_type=file.media_type)

"""The viewer's files: whole, alone in the world, and open to everybody, as they know nothing."""

import re
from pathlib import Path

import pytest

from attnserve.service.app import create_app
from attnserve.service.catalogue import Catalogue
from attnserve.service.keys import hash_secret
from attnserve.service.settings import Settings
from attnserve.service.viewer.routes import FILES, PAGE
from tests.http.conftest import check_problem, talk

FOLDER = Path(__file__).resolve().parents[2] / "service" / "viewer"
TEXTS = {name: file.content.decode() for name, file in FILES.items()}
PATHS = ["/", *(f"/viewer/{name}" for name in sorted(FILES) if name != PAGE)]
KEYS = [{"name": "somebody", "sha256": hash_secret("somebody's").hex(), "scopes": []}]
MAX_BYTES = 150_000


@pytest.fixture
def ask(tmp_path):
    """Answers of an app that has no models, and keys."""
    app = create_app(Catalogue(tmp_path, Settings(keys=KEYS)))

    def run(*paths, method="GET", **headers):
        answers = []

        async def conversation(client):
            answers.extend([await client.request(method, path, headers=headers) for path in paths])

        talk(app, conversation)
        return answers

    return run


def test_every_file_of_the_folder_is_served_under_its_name_to_whoever_asks(ask):
    assert {path.name for path in FOLDER.iterdir() if path.is_file() and path.suffix != ".py"} == set(FILES)
    types = {".css": "text/css", ".html": "text/html", ".js": "text/javascript"}
    (refused,) = ask("/v1/models")
    check_problem(refused, 401)
    for path, response in zip(PATHS, ask(*PATHS), strict=True):
        name = PAGE if path == "/" else path.rpartition("/")[2]
        assert response.status_code == 200
        assert response.content == FOLDER.joinpath(name).read_bytes()
        assert response.headers["Content-Type"] == f"{types[Path(name).suffix]}; charset=utf-8"


def test_the_browser_is_told_to_load_nothing_else(ask):
    for response in ask(*PATHS):
        policy = dict(part.split(" ", 1) for part in response.headers["Content-Security-Policy"].split("; "))
        assert policy == {
            "default-src": "'none'",
            "script-src": "'self'",
            "style-src": "'self'",
            "img-src": "'self' blob: data:",
            "connect-src": "'self'",
            "base-uri": "'none'",
            "form-action": "'none'",
            "frame-ancestors": "'self'",
        }
        assert response.headers["X-Content-Type-Options"] == "nosniff"
        assert response.headers["Referrer-Policy"] == "no-referrer"


@pytest.mark.parametrize("path", PATHS)
def test_what_a_browser_has_is_not_sent_again(ask, path):
    (first,) = ask(path)
    tag = first.headers["ETag"]
    assert first.headers["Cache-Control"] == "no-cache"
    for known in (tag, f'"other", W/{tag}', "*"):
        (again,) = ask(path, **{"If-None-Match": known})
        assert (again.status_code, again.content) == (304, b"")
        assert again.headers["ETag"] == tag
        assert again.headers["Cache-Control"] == "no-cache"
    (changed,) = ask(path, **{"If-None-Match": '"other"'})
    assert changed.status_code == 200


def test_head_is_answered_as_get_is(ask):
    for asked, headed in zip(ask(*PATHS), ask(*PATHS, method="HEAD"), strict=True):
        assert headed.content == b""
        # Of each its own.
        left_out = {"x-request-id"}
        assert {name: value for name, value in headed.headers.items() if name not in left_out} == {
            name: value for name, value in asked.headers.items() if name not in left_out
        }


@pytest.mark.parametrize("name", ["nothing.js", "routes.py", PAGE, "..%2froutes.py", "%2e%2e", "PAGE.JS", "page.js%00"])
def test_what_is_no_file_of_the_page_is_not_found(ask, name):
    (response,) = ask(f"/viewer/{name}")
    assert "got " in check_problem(response, 404)


def test_tags_tell_files_apart():
    assert len({file.tag for file in FILES.values()}) == len(FILES)


def test_every_file_that_another_names_is_there():
    page = re.findall(r'(?:src|href)="viewer/([^"]+)"', TEXTS[PAGE])
    named = {PAGE, *page}
    for name, text in TEXTS.items():
        if name.endswith(".js"):
            imported = re.findall(r'^(?:import|\} from) ?[^"\n]*"\./([^"]+)";$', text, re.MULTILINE)
            assert len(imported) == len(re.findall(r' from "|^import "', text, re.MULTILINE)), name
            named |= set(imported)
            # In comments: types.
            assert not set(re.findall(r'import\("\./([^"]+)"\)', text)) - set(FILES)
    assert named == set(FILES)


def test_everything_that_is_imported_is_exported():
    exported = {
        name: set(re.findall(r"^export (?:async )?(?:const|class|function) (\w+)", text, re.MULTILINE))
        for name, text in TEXTS.items()
    }
    wanted = [
        (source, word.strip())
        for text in TEXTS.values()
        for words, source in re.findall(r'^import \{([^}]*)\} from "\./([^"]+)";$', text, re.MULTILINE)
        for word in words.split(",")
        if word.strip()
    ]
    assert not [(source, word) for source, word in wanted if word not in exported[source]]


def test_every_element_that_is_looked_for_is_there():
    ids = re.findall(r'\bid="([^"]+)"', TEXTS[PAGE])
    assert len(ids) == len(set(ids))
    for name, text in TEXTS.items():
        if name.endswith(".js"):
            assert set(re.findall(r'\b(?:find|on)\("([\w-]+)"', text)) <= set(ids), name


@pytest.mark.parametrize("name", FILES)
def test_files_name_no_other_place_and_make_no_markup_of_text(name):
    text = TEXTS[name]
    assert "://" not in text
    # Relative, so that a gateway may put the page below a path.
    assert not re.findall(r"""["'`(]/[/\w]""", text)
    assert not re.findall(
        r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|new Function|DOMParser", text
    )


def test_the_page_has_neither_scripts_nor_styles_inside():
    # The policy would refuse them.
    assert not re.findall(r"\son\w+=|\sstyle=|<style|javascript:", TEXTS[PAGE])
    assert re.findall(r"<script[^>]*>", TEXTS[PAGE]) == ['<script type="module" src="viewer/page.js">']
    assert TEXTS[PAGE].count("<script") == 1


def test_the_page_is_small():
    assert sum(len(file.content) for file in FILES.values()) < MAX_BYTES


@pytest.mark.parametrize("name", FILES)
def test_files_can_be_read(name):
    lines = TEXTS[name].splitlines()
    assert max(map(len, lines)) <= 120
    assert TEXTS[name].endswith("\n")
    assert not [line for line in lines if line != line.rstrip()]

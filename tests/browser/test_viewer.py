"""The viewer in a browser, on a service: what it shows is what the API answers."""

import json
import re
import shutil
import subprocess
import sys
from urllib.parse import parse_qs, urlencode, urlsplit

import numpy as np
import pytest
from safetensors.numpy import load_file

from attnserve.service.captures.pyramid import Pyramid
from attnserve.service.formats.colours import diverging_palette, sequential_palette
from attnserve.service.keys import hash_secret, make_secret
from tests.conftest import LABELS, MAX_LENGTH

pytestmark = [pytest.mark.slow, pytest.mark.http]
playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")

SECRET = make_secret()
KEYS = [{"name": "reader", "sha256": hash_secret(SECRET).hex(), "scopes": ["predict", "attention"]}]
HOSTILE = "<img src=x onerror=alert(1)>"
IDS = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9, 7, 9, 3]
LONG = [(7 * step + step * step // 5) % len(LABELS) for step in range(MAX_LENGTH)]
# Of the matrix in its canvas, in pixels.
GUTTER, MARGIN = 34, 8
READOUT = re.compile(r"query (\d+) “.*” → key (\d+) “.*”: ([\d.e-]+) \(rank (\d+) of (\d+)")


@pytest.fixture(scope="module")
def guarded(copy_bundle, start_server, tmp_path_factory):
    """With keys, and a label that somebody has thought about."""
    repository = tmp_path_factory.mktemp("guarded")
    manifest = copy_bundle(repository / "tiny" / "1") / "manifest.json"
    document = json.loads(manifest.read_text("utf-8"))
    document["labels"] = [HOSTILE, *document["labels"][1:]]
    manifest.write_text(json.dumps(document), "utf-8")
    with start_server(repository, "--keys", json.dumps(KEYS)) as served:
        yield served


def link(served, **state):
    return f"{served.url}/#{urlencode(state)}"


def wait_until_shown(page):
    page.wait_for_selector("#map:not([hidden])")
    page.wait_for_selector("#submit:not([aria-busy])")
    page.wait_for_selector(".card .pattern b")


def state_of(page):
    return {name: value for name, (value,) in parse_qs(urlsplit(page.url).fragment).items()}


def weights_of(served, ids, layer, head, quantity="weights"):
    """[queries, keys], in parts that JSON may hold."""
    rows, half = [], max(1, len(ids) // 2)
    for begin in range(0, len(ids), half):
        question = {"sequences": [ids], "quantity": quantity, "layers": [layer], "heads": [head]}
        answer = served.ask("attention", {**question, "queries": f"{begin}:{begin + half}"})
        rows += answer["maps"][0][quantity]
    return rows


def drawn(page):
    """Wait until what was done is drawn: two frames, the second after the first has been shown."""
    page.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")


def leave(page):
    """Point at nothing, and wait until every tile in sight is drawn."""
    page.hover("h1")
    drawn(page)
    page.wait_for_selector("#matrix[aria-busy=false]")
    drawn(page)


def pixel_at(page, x, y):
    read = "([x, y]) => [...document.querySelector('#matrix').getContext('2d').getImageData(x, y, 1, 1).data]"
    return page.evaluate(read, [x, y])


def capture_of(page):
    """The id of the capture that the page asked about last."""
    entries = page.evaluate("() => performance.getEntriesByType('resource').map(({ name }) => name)")
    return re.findall(r"/v1/captures/([^/\s]+)/", "\n".join(entries))[-1]


def point_at(page, x, y):
    """The numbers of what is said of a cell, once its weight is there."""
    page.hover("#matrix", position={"x": x, "y": y})
    drawn(page)
    page.wait_for_selector("#readout >> text=/: [0-9]/")
    return [float(number) for number in READOUT.match(page.inner_text("#readout")).groups()]


def cell_around(page, x, y):
    """What is said of a cell, if these pixels are well within it and may be seen; else None."""
    said = set()
    for shift in (-2, 3):
        page.hover("#matrix", position={"x": x + shift, "y": y + shift})
        drawn(page)
        said.add(page.inner_text("#readout").partition(":")[0])
    return None if len(said) > 1 or page.inner_text("#readout").endswith("not seen") else point_at(page, x, y)


def check_cell(found, weights):
    query, key, weight, rank, num_seen = found
    row = weights[int(query)]
    assert weight == pytest.approx(row[int(key)], rel=1e-3)
    assert rank == 1 + sum(other > row[int(key)] for other in row)
    assert num_seen == int(query) + 1


def test_a_first_look(server, open_page):
    page = open_page(server.url)
    page.click("#submit")
    wait_until_shown(page)
    assert page.locator(".card").count() == 3 * 2
    assert page.locator("#top li").count() == 5
    assert not page.is_visible("#problem")
    page.click(".card >> text=2.1")
    assert page.inner_text("#head").startswith("Layer 2, head 1")
    assert page.is_visible("#metric")
    page.keyboard.press("ArrowUp")
    page.keyboard.press("ArrowLeft")
    assert page.inner_text("#head").startswith("Layer 1, head 0")
    assert (state_of(page)["layer"], state_of(page)["head"]) == ("1", "0")


def test_predictions_and_measures_are_those_of_the_api(server, open_page):
    page = open_page(link(server, model="tiny", layer=2, head=1, query=4, input=json.dumps(IDS)))
    wait_until_shown(page)
    asked = {"sequences": [IDS], "positions": [4], "layers": [2], "heads": [1]}
    answer = server.ask("attention", asked)
    page.wait_for_selector("#predicted >> text=after 4")
    shown = [page.inner_text(f"#top li:nth-child({place})").split("\n")[0] for place in range(1, 6)]
    assert shown == [entry["label"] for entry in answer["predictions"][0]["top"][0]]
    measures = dict(zip(*(page.locator(f"#measures {tag}").all_inner_texts() for tag in ("dt", "dd")), strict=True))
    (found,) = answer["diagnostics"]
    assert float(measures["entropy, bits"]) == pytest.approx(found["entropy_bits"], abs=1e-3)
    assert float(measures["first key"]) == pytest.approx(found["sink"], abs=1e-3)


def test_what_is_pointed_at_is_the_weight_of_the_api_at_every_zoom(server, open_page):
    page = open_page(link(server, model="tiny", layer=1, head=1, input=json.dumps(LONG)))
    wait_until_shown(page)
    weights = weights_of(server, LONG, 1, 1)
    seen = []
    for _ in range(4):
        seen.append(point_at(page, 330, 430))
        check_cell(seen[-1], weights)
        page.mouse.wheel(0, -500)
    # What is under the pointer stays there.
    assert len({tuple(found[:2]) for found in seen}) == 1
    page.click("#fit")
    page.keyboard.press("0")
    check_cell(point_at(page, 200, 400), weights)


@pytest.mark.parametrize("scale", ["sqrt", "linear"])
def test_tiles_lie_where_their_weights_are_in_the_colours_of_the_service(server, open_page, scale):
    assert Pyramid(MAX_LENGTH).num_zooms == 2
    page = open_page(link(server, model="tiny", layer=0, head=1, scale=scale, input=json.dumps(LONG)))
    wait_until_shown(page)
    weights, palette = weights_of(server, LONG, 0, 1), sequential_palette().astype(int)
    peak = max(map(max, weights))
    place = {"sqrt": lambda ratio: ratio**0.5, "linear": lambda ratio: ratio}[scale]
    box = page.locator("#matrix").bounding_box()
    seen, cell = [], (box["height"] - GUTTER - MARGIN) / MAX_LENGTH
    # Within a tile, and where four of them meet.
    for query, key in ((180, 80), (268, 256)):
        x, y = (round(GUTTER + step * cell) for step in (key, query))
        page.keyboard.press("0")
        page.mouse.move(box["x"] + x, box["y"] + y)
        for _ in range(4):
            page.mouse.wheel(0, -300)
        points = [(x + dx, y + dy) for dx in (-70, -30, 0, 40) for dy in (-60, -20, 20)]
        # Of a pixel at the edge of a cell the browser decides whose it is.
        pointed = [(*point, cell_around(page, *point)) for point in points]
        leave(page)
        for x, y, found in pointed:
            if found is None:
                continue
            seen.append(found[:2])
            check_cell(found, weights)
            step = round(255 * place(weights[int(found[0])][int(found[1])] / peak))
            # Codes are 255 steps of each row's largest weight, and colours 256 of the map's.
            near = palette[max(0, step - 1) : step + 2]
            *colour, alpha = pixel_at(page, x, y)
            assert alpha == 255
            assert min(abs(near - colour).max(1)) <= 1, (found, step, colour)
    assert len(seen) >= 10
    assert {(query >= 256, key >= 256) for query, key in seen} == {(False, False), (True, False), (True, True)}


def test_what_is_not_seen_is_told_from_what_weighs_nothing(server, open_page):
    page = open_page(link(server, model="tiny", layer=1, head=0, input=json.dumps(IDS)))
    wait_until_shown(page)
    page.hover("#matrix", position={"x": 400, "y": 60})
    page.wait_for_selector("#readout >> text=not seen")
    leave(page)
    assert pixel_at(page, 400, 60)[:3] not in sequential_palette().tolist()


def test_a_link_opens_what_it_was_made_of(server, open_page):
    page = open_page(server.url)
    page.fill("#input", json.dumps(IDS))
    page.keyboard.press("Control+Enter")
    wait_until_shown(page)
    page.click(".card >> text=1.1")
    page.select_option("#scale", "log")
    page.check("#first")
    page.check("input[value=key]")
    point_at(page, 120, 300)
    page.click("#matrix", position={"x": 120, "y": 300})
    page.wait_for_selector("#strongest .bar")
    leave(page)
    said, strongest = page.inner_text("#readout"), page.locator("#strongest .name").all_inner_texts()
    assert READOUT.match(said)
    assert strongest
    again = open_page(page.url)
    wait_until_shown(again)
    playwright.expect(again.locator("#readout")).to_have_text(said)
    assert again.inner_text("#head") == page.inner_text("#head")
    assert again.input_value("#scale") == "log"
    assert again.is_checked("#first")
    assert again.is_checked("input[value=key]")
    playwright.expect(again.locator("#strongest .name")).to_have_text(strongest)


def test_a_token_tells_what_it_looks_at_and_who_looks_at_it(server, open_page):
    page = open_page(link(server, model="tiny", layer=0, head=0, query=9, input=json.dumps(IDS)))
    wait_until_shown(page)
    weights = weights_of(server, IDS, 0, 0)
    labels = [LABELS[index] for index in IDS]

    def best(line):
        order = sorted(range(len(line)), key=lambda step: -line[step])
        return [f"{step} “{labels[step]}”" for step in order if line[step] > 0][:8]

    names = page.locator("#strongest .name")
    playwright.expect(names).to_have_text(best(weights[9]))
    page.keyboard.press("t")
    page.keyboard.press("/")
    page.keyboard.type(labels[3])
    page.keyboard.press("Enter")
    page.wait_for_selector("#strongest-title >> text=Strongest queries of key")
    key = int(state_of(page)["key"])
    assert labels[key] == labels[3]
    playwright.expect(names).to_have_text(best([row[key] for row in weights]))


def test_signs_are_those_of_the_scores(server, open_page):
    page = open_page(link(server, model="tiny", layer=1, head=1, sign="shown", input=json.dumps(IDS)))
    wait_until_shown(page)
    signed, palette = weights_of(server, IDS, 1, 1, "signed"), diverging_palette().astype(int)
    peak = max(abs(weight) for row in signed for weight in row)
    points = [(60, 300), (120, 250), (200, 320), (90, 400), (250, 400)]
    pointed = [point_at(page, x, y) for x, y in points]
    assert len({signed[int(query)][int(key)] < 0 for query, key, *_ in pointed}) == 2
    leave(page)
    for (x, y), (query, key, *_) in zip(points, pointed, strict=True):
        weight = signed[int(query)][int(key)]
        place = (abs(weight) / peak) ** 0.5 * (1 if weight > 0 else -1)
        *colour, _ = pixel_at(page, x, y)
        assert abs(palette[round(255 * (0.5 + place / 2))] - colour).max() <= 2


def test_a_key_is_asked_for_and_a_label_is_text(guarded, open_page):
    page = open_page(guarded.url, expect_statuses=[401])
    page.wait_for_selector("#problem >> text=expected a key")
    page.fill("#key", "another")
    page.keyboard.press("Enter")
    page.wait_for_selector("#problem >> text=that this service knows")
    page.fill("#key", SECRET)
    page.keyboard.press("Enter")
    wait_until_shown(page)
    assert not page.is_visible("#access")
    assert SECRET not in page.url + page.content()
    page.fill("#input", json.dumps([0, 0, *IDS, 0]))
    page.keyboard.press("Control+Enter")
    page.wait_for_selector("#predicted >> text=after 18")
    point_at(page, 150, 400)
    page.click("#matrix", position={"x": 150, "y": 400})
    for step in range(len(LABELS)):
        page.keyboard.press("Shift+ArrowDown" if step else "Shift+ArrowRight")
    shown = page.inner_text("body")
    assert HOSTILE[:20] in shown
    assert page.locator("img").count() == 0


def test_what_the_service_refuses_is_said_in_its_words(server, open_page):
    page = open_page(server.url, expect_statuses=[422])
    page.wait_for_selector("#summary >> text=layers")
    for typed in ("[1, 99]", "[]", '"text"', '[1, {"a": null}]'):
        page.fill("#input", typed)
        page.click("#submit")
        refused = server.post("captures", f'{{"sequences": [{typed}], "positions": "last"}}'.encode())
        page.wait_for_selector(f"#problem >> text={json.dumps(refused.json()['detail'])}")
    page.fill("#input", "[1, 2")
    page.click("#submit")
    page.wait_for_selector("#problem >> text=input: expected JSON")


def test_a_capture_that_is_gone_is_taken_again(server, open_page):
    page = open_page(link(server, model="tiny", layer=1, head=0, input=json.dumps(IDS)), expect_statuses=[410])
    wait_until_shown(page)
    gone = capture_of(page)
    assert server.client.delete(f"/v1/captures/{gone}").status_code == 204
    check_cell(point_at(page, 100, 350), weights_of(server, IDS, 1, 0))
    taken = capture_of(page)
    assert taken != gone
    assert not page.is_visible("#problem")
    # The next question needs no two captures, and who leaves needs none.
    page.fill("#input", json.dumps(IDS[:5]))
    page.keyboard.press("Control+Enter")
    page.wait_for_selector("#predicted >> text=after 4")
    assert server.client.get(f"/v1/captures/{taken}").status_code == 410
    wait_until_shown(page)
    last = capture_of(page)
    assert server.client.get(f"/v1/captures/{last}").status_code == 200
    page.goto("about:blank")
    assert any(server.client.get(f"/v1/captures/{last}").status_code == 410 for _ in range(2000))


def test_texts_are_found_however_they_are_cut_and_a_model_of_features_has_its_own_row(broad, open_page):
    text = "the cat sat, the   cat\nate\tthe hat ☃"
    page = open_page(link(broad, model="text", layer=1, head=3, input=text))
    wait_until_shown(page)
    tokens = broad.ask("attention", {"sequences": [text], "layers": [0], "heads": [0]}, model="text")["tokens"][0]
    begins = [token["span"][0] for token in tokens]
    for sought, places in (("sat", [8]), ("E CA", [2]), ("hat", [31]), ("dog", [])):
        page.keyboard.press("/")
        page.fill("#sought", sought)
        page.keyboard.press("Enter")
        assert page.inner_text("#found") == (f"1 of {len(places)}" if places else "none")
        if places:
            step = int(state_of(page)["query"])
            assert begins[step] <= places[0] < tokens[step]["span"][1]
        page.keyboard.press("Escape")
        page.keyboard.press("Escape")
    page.select_option("#model", "leading")
    page.wait_for_selector("#input-label >> text=Vectors of 3 numbers")
    page.click("#submit")
    page.wait_for_selector("#summary >> text=classify sequence")
    page.wait_for_selector("#head >> text=elliptical")
    page.hover("#matrix", position={"x": 60, "y": 60})
    page.wait_for_selector("#readout >> text=/query 0 “.cls.” → key 0 “.cls.”: [0-9.]+ .rank [0-9]+ of 17/")


def test_what_is_copied_asks_for_what_is_seen(broad, open_page, monkeypatch):
    text = 'it\'s "the cat"\n$HOME `at`'
    page = open_page(link(broad, model="text", layer=1, head=2, query=3, input=text))
    wait_until_shown(page)
    shown = {"model": "text", "version": 1, "sequence": text, "layer": 1, "head": 2, "query": 3, "hasKey": False}
    write = "async ([name, shown]) => (await import('./viewer/snippets.js'))[name]({ ...shown, length: 20 })"
    question = {"sequences": [text], "quantity": "weights", "layers": [1], "heads": [2], "queries": [3]}
    (row,) = broad.ask("attention", question, model="text")["maps"][0]["weights"]

    def run(*command):
        # Not from the repository root, and without a key of whoever runs the tests.
        monkeypatch.delenv("ATTNSERVE_API_KEY", raising=False)
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, cwd="/")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    python = page.evaluate(write, ["writePython", shown]) + "print(weights.tolist())"
    assert run(sys.executable, "-c", python)[0] == pytest.approx(row, abs=1e-6)
    assert "ATTNSERVE_API_KEY" in page.evaluate(write, ["writeCurl", {**shown, "hasKey": True}])
    if shutil.which("curl") is not None:
        curl = page.evaluate(write, ["writeCurl", shown]).replace("curl ", "curl --silent ", 1)
        assert run("bash", "-c", curl)["maps"][0]["weights"][0] == pytest.approx(row, abs=1e-6)


def test_downloads_are_the_services_own(server, open_page, tmp_path):
    page = open_page(link(server, model="tiny", layer=2, head=0, input=json.dumps(IDS)))
    wait_until_shown(page)
    weights = weights_of(server, IDS, 2, 0)
    for button, name in (("#png", "tiny-2.0.png"), ("#tensors", "tiny-2.0.safetensors")):
        with page.expect_download() as started:
            page.click(button)
        assert started.value.suggested_filename == name
        started.value.save_as(tmp_path / name)
    assert (tmp_path / "tiny-2.0.png").read_bytes().startswith(b"\x89PNG")
    assert load_file(tmp_path / "tiny-2.0.safetensors")["weights"] == pytest.approx(np.array(weights), abs=1e-6)


def test_a_gateway_may_put_it_below_a_path(server, open_page):
    page = open_page("about:blank")
    asked = []

    def forward(route):
        path = route.request.url.removeprefix(server.url)
        asked.append(path)
        if path.startswith("/models/of/ours/"):
            route.fulfill(response=route.fetch(url=server.url + path.removeprefix("/models/of/ours")))
        else:
            route.abort()

    page.route(f"{server.url}/**", forward)
    page.goto(f"{server.url}/models/of/ours/")
    page.click("#submit")
    wait_until_shown(page)
    point_at(page, 60, 300)
    assert not [path for path in asked if not path.startswith("/models/of/ours/")]


def test_its_arithmetic_is_that_of_the_service(server, open_page):
    page = open_page(server.url)
    tables = page.evaluate(
        "async () => { const { SEQUENTIAL, DIVERGING } = await import('./viewer/colours.js');"
        " return [[...SEQUENTIAL], [...DIVERGING]]; }"
    )
    assert tables == [palette().reshape(-1).tolist() for palette in (sequential_palette, diverging_palette)]
    for cell in (0.01, 0.06, 0.124, 0.125, 0.4, 0.5, 0.99, 1, 30):
        choose = "async ([cell, zooms]) => (await import('./viewer/geometry.js')).chooseZoom(cell, zooms)"
        factor = Pyramid(4096).factor(page.evaluate(choose, [cell, Pyramid(4096).num_zooms]))
        # A pixel for each cell of the level, and not for each of the next finer one.
        assert factor == 16 or factor * cell >= 1
        assert factor == 1 or factor * cell < 2
    # By what may be seen: each query, and each cell of each level, by the keys and queries that it stands for.
    masked = """async ([length, factor, sight]) => {
        const { isMasked, countSeen } = await import('./viewer/geometry.js');
        const steps = [...Array(Math.ceil(length / factor)).keys()];
        const counts = [...Array(length).keys()].map((query) => countSeen(query, length, sight));
        return [steps.map((row) => steps.map((column) => isMasked(row, column, factor, length, sight))), counts];
    }"""
    for length, factor in ((7, 1), (7, 2), (9, 4)):
        for causal, window in ((True, 0), (True, 3), (False, 0), (False, 3), (True, 1)):
            offset = np.arange(length)[:, None] - np.arange(length)
            seen = (offset >= 0) if causal else np.ones((length, length), bool)
            seen &= (np.abs(offset) < window) if window else True
            size = -(-length // factor)
            padded = np.zeros((size * factor, size * factor), bool)
            padded[:length, :length] = seen
            pooled = padded.reshape(size, factor, size, factor).any((1, 3))
            cells, counts = page.evaluate(masked, [length, factor, {"causal": causal, "window": window}])
            assert counts == seen.sum(1).tolist()
            assert cells == (~pooled).tolist(), (length, factor, causal, window)


def test_two_fingers_enlarge_what_is_between_them(server, open_page):
    phone = {"viewport": {"width": 390, "height": 844}, "has_touch": True, "is_mobile": True}
    page = open_page(link(server, model="tiny", layer=0, head=0, input=json.dumps(LONG)), **phone)
    wait_until_shown(page)
    page.locator("#matrix").scroll_into_view_if_needed()
    box = page.locator("#matrix").bounding_box()
    x, y = box["x"] + 120, box["y"] + 220
    page.touchscreen.tap(x, y)
    page.wait_for_selector("#readout >> text=/: [0-9]/")
    assert "query" in state_of(page)
    fingers = page.context.new_cdp_session(page)

    def touch(kind, *places):
        points = [{"x": place, "y": y, "id": number} for number, place in enumerate(places)]
        fingers.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})

    said = page.inner_text("#readout")
    touch("touchStart", x - 10, x + 10)
    for apart in range(20, 110, 10):
        touch("touchMove", x - apart, x + apart)
    touch("touchEnd")
    drawn(page)
    # Beside it now is a neighbour, where before there were some.
    page.touchscreen.tap(x + 16, y)
    page.wait_for_selector("#readout >> text=/: [0-9]/")
    (query, key, *_), (other_query, other_key, *_) = (
        [float(number) for number in READOUT.match(text).groups()] for text in (said, page.inner_text("#readout"))
    )
    assert query == other_query
    assert key < other_key <= key + 3


def test_a_tile_that_a_busy_service_refused_is_asked_for_again(server, open_page):
    page = open_page("about:blank", expect_statuses=[429])
    refusal = {"detail": "64 large answers wait to be written; come back later", "errors": []}
    refused = []

    def refuse(route):
        if refused:
            route.fallback()
        else:
            refused.append(route.request.url)
            route.fulfill(status=429, content_type="application/problem+json", body=json.dumps(refusal))

    page.route("**/tiles/**", refuse)
    page.goto(link(server, model="tiny", layer=0, head=0, input=json.dumps(IDS)))
    page.wait_for_selector(f"#problem >> text={refusal['detail']}")
    leave(page)
    assert pixel_at(page, 60, 300)[:3] not in sequential_palette().tolist()
    page.click("#in")
    page.click("#fit")
    leave(page)
    assert pixel_at(page, 60, 300)[:3] in sequential_palette().tolist()

"""A real browser, where one is installed."""

import os
import shutil

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


@pytest.fixture(scope="module")
def browser():
    """Of one module: while it lives, its event loop is that of this thread."""
    playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
    if CHROMIUM is None:
        pytest.skip("Chromium is not installed")
    # Its sandbox needs rights that containers do not have; root may not use it at all.
    flags = ["--no-sandbox", "--disable-dev-shm-usage"] if os.geteuid() == 0 else []
    # Machines may be busy.
    playwright.expect.set_options(timeout=60_000)
    with playwright.sync_playwright() as started:
        opened = started.chromium.launch(executable_path=CHROMIUM, args=flags)
        yield opened
        opened.close()


@pytest.fixture
def open_page(browser):
    """Opens an address; whatever happens then, the page makes no error and asks nobody but its own service."""
    contexts, errors, asked, expected = [], [], [], []

    def open_(url, *, expect_statuses=(), **options):
        expected.extend(expect_statuses)
        context = browser.new_context(**{"viewport": {"width": 1280, "height": 800}, **options})
        context.set_default_timeout(60_000)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda said: errors.append(said.text) if said.type == "error" else None)
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("dialog", lambda dialog: errors.append(dialog.message))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(url)
        return page

    yield open_
    for context in contexts:
        context.close()
    hosts = {address.split("/")[2] for address in asked if address.startswith("http")}
    assert len(hosts) == 1
    # Of an answer that is an error the browser says so by itself.
    assert not [text for text in errors if not any(f"status of {status}" in text for status in expected)]

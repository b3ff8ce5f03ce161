"""A Chromium without a window, for pages that are tested in it."""

import contextlib
import shutil

import pytest

_OPTIONS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@contextlib.contextmanager
def opened(folder):
    """An empty tab, whose profile is in a folder; skips the test where there is no browser."""
    playwright = pytest.importorskip("playwright.sync_api", reason="drives the browser")
    found = [shutil.which(name) for name in ("chromium", "chromium-browser", "google-chrome")]
    browser = next(filter(None, found), None)
    if browser is None:
        pytest.skip("there is no Chromium")
    with playwright.sync_playwright() as driver:
        context = driver.chromium.launch_persistent_context(
            folder / "profile", executable_path=browser, args=_OPTIONS
        )
        try:
            yield context.new_page()
        finally:
            context.close()

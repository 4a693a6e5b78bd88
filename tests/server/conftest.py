"""A browser for tests of the page: Chromium without a window, driven by playwright."""

import os
import shutil
from collections.abc import Iterator
from typing import Any

import pytest

NAMES = "chromium", "chromium-browser", "google-chrome"


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """The Chromium that OCTAVO_CHROMIUM names, or else the system's; a plain skip where it or playwright is missing."""
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: `make browser` does it")
    program = os.environ.get("OCTAVO_CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
    if program is None:
        pytest.skip("there is no Chromium here: `make browser` installs it")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()

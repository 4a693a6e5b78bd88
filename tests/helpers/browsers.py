"""A browser for tests: Chromium without a window, driven by playwright; a plain skip where either is missing."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

NAMES = "chromium", "chromium-browser", "google-chrome"


@contextmanager
def browser() -> Iterator[Any]:
    """Start the Chromium that OCTAVO_CHROMIUM names, or else the system's."""
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: `make browser` does it")
    program = os.environ.get("OCTAVO_CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
    if program is None:
        pytest.skip("there is no Chromium here: `make browser` installs it")
    with api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=program, args=["--no-sandbox", "--disable-gpu"])
        try:
            yield started
        finally:
            started.close()

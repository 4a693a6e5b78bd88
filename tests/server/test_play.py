"""`octavo play`: the page on a free port; a browser where there is a screen, unless it is told not to."""

import re
import signal
import subprocess
import sys
import time
import urllib.request
import webbrowser
from pathlib import Path

import pytest

pytest.importorskip("fastapi", reason="the server's packages are not installed: octavo[serve]")

from tiny_folder import save_tiny

from octavo.gpt.cli import play


def test_it_prints_where_the_page_is_and_serves_it(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "octavo.gpt", "play", "--no-browser", "--model", str(save_tiny(tmp_path / "m"))]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            found = re.fullmatch(r"octavo: the page is at (http://127\.0\.0\.1:\d+/)\n", process.stderr.readline())
            assert found
            with urllib.request.urlopen(found[1], timeout=30) as answer:
                assert b"<title>Octavo: how a GPT writes</title>" in answer.read()
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(30)


@pytest.mark.parametrize(("display", "only_says", "opened"), [(":0", False, 1), (":0", True, 0), (None, False, 0)])
def test_a_browser_opens_where_there_is_a_screen(
    display: str | None, only_says: bool, opened: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(webbrowser, "open", asked.append)
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    monkeypatch.delenv("DISPLAY", raising=False)
    if display is not None:
        monkeypatch.setenv("DISPLAY", display)
    play.show("http://127.0.0.1:5", only_says)
    deadline = time.monotonic() + 5
    while len(asked) < opened and time.monotonic() < deadline:
        time.sleep(0.01)
    assert asked == ["http://127.0.0.1:5/"] * opened
    assert capsys.readouterr().err == "octavo: the page is at http://127.0.0.1:5/\n"

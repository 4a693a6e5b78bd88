"""The page's files as they lie: nothing from elsewhere, no way for a model's text to become markup, small modules."""

import re
from pathlib import Path

import pytest

import octavo.gpt

STATIC = Path(octavo.gpt.__file__).parent / "server" / "static"
FILES = sorted(path for path in STATIC.iterdir() if path.suffix in (".html", ".css", ".js", ".svg"))
MARKUP = re.compile(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function|srcdoc")


def test_every_file_has_a_known_kind() -> None:
    assert {path.name for path in STATIC.iterdir()} == {path.name for path in FILES}


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_a_file_is_short_and_asks_nobody_else(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 350
    assert max(map(len, text.splitlines())) <= 120
    assert not MARKUP.search(text)
    assert not re.search(r"//[a-z0-9-]+\.[a-z]", text.replace("//www.w3.org/2000/svg", ""))


def test_what_scripts_look_up_is_on_the_page() -> None:
    page = (STATIC / "index.html").read_text(encoding="utf-8")
    scripts = "".join(path.read_text(encoding="utf-8") for path in FILES if path.suffix == ".js")
    names = set(re.findall(r'find\("([a-z-]+)"\)', scripts))
    assert len(names) > 20
    assert not {name for name in names if f'id="{name}"' not in page}


def test_modules_that_are_imported_exist() -> None:
    for path in FILES:
        for name in re.findall(r'from "\./([^"]+)"', path.read_text(encoding="utf-8")):
            assert (STATIC / name).is_file(), f"{path.name}: {name}"

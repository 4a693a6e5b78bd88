"""Every Python snippet of the READMEs runs as it stands, the snippets of one page one after another."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PAGES = ("README.md", "kernels/README.md")


def snippets(page: str) -> str:
    """The page's ```python blocks, one program."""
    return "\n".join(re.findall(r"^```python\n(.*?)^```$", (ROOT / page).read_text(), re.MULTILINE | re.DOTALL))


@pytest.mark.model
@pytest.mark.parametrize("page", PAGES)
def test_the_snippets_run(page, smollm2_path, tmp_path):
    program = snippets(page)
    assert program, f"{page} has no snippet"
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr


def test_a_page_that_names_what_is_not_there_would_fail():
    assert subprocess.run([sys.executable, "-c", "from octavo.gpt import Nothing"], capture_output=True).returncode

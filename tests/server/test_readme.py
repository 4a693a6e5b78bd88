"""README's clients of the server run as they stand, but for the port; those of packages not here are skipped."""

import re
from importlib.util import find_spec
from pathlib import Path

import pytest

from served import served

README = (Path(__file__).parents[2] / "README.md").read_text()
SNIPPETS = re.findall(r"^```py\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with served(tmp_path_factory.mktemp("served"), served_model_name="smollm2") as server:
        yield server


@pytest.mark.parametrize("snippet", SNIPPETS, ids=lambda text: text.split()[1])
def test_the_clients_of_the_readme_get_an_answer(server, snippet, capsys):
    packages = re.findall(r"^(?:from|import) (\w+)", snippet, re.MULTILINE)
    if missing := [name for name in packages if find_spec(name) is None]:
        pytest.skip(f"{', '.join(missing)} not installed")
    before = server.serving.llm.stats()["requests_finished"]
    exec(snippet.replace("http://127.0.0.1:8000", server.url), {})
    calls = len(re.findall(r"completions\.create|litellm\.completion|\.invoke", snippet))
    assert server.serving.llm.stats()["requests_finished"] - before == calls > 0


def test_there_are_such_snippets():
    assert len(SNIPPETS) == 2

"""Many clients at once lose nothing, and nothing that fits the schema, or does not, is a 500."""

import asyncio
import subprocess
import sys

import pytest
from tiny_folder import load_tiny

from octavo.gpt import SamplingParams

from served import served

httpx = pytest.importorskip("httpx2")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("served") / "model"


@pytest.fixture(scope="module")
def server(folder):
    with served(folder) as server:
        yield server


def test_a_load_of_200_requests_loses_none(server, folder):
    """And each gets, among the others, the very tokens that it gets from the library."""
    bodies = [{"prompt": [5 + i % 50, 6, 7 + i % 3], "max_tokens": 3 + i % 20, "seed": i} for i in range(200)]

    async def ask_all():
        limits = httpx.Limits(max_connections=200)
        async with httpx.AsyncClient(base_url=server.url, timeout=120, limits=limits) as client:
            extra = {"return_token_ids": True, "ignore_eos": True}
            calls = [client.post("/v1/completions", json=body | extra) for body in bodies]
            return await asyncio.gather(*calls)

    answers = asyncio.run(ask_all())
    assert [answer.status_code for answer in answers] == [200] * 200
    found = [answer.json()["choices"][0]["token_ids"] for answer in answers]
    params = [SamplingParams(max_tokens=body["max_tokens"], seed=body["seed"], ignore_eos=True) for body in bodies]
    with load_tiny(folder, max_model_len=96) as llm:
        mine = llm.generate([body["prompt"] for body in bodies], params, use_tqdm=False)
    assert found == [list(request.outputs[0].token_ids) for request in mine]
    stats = server.serving.llm.stats()
    assert (stats["blocks_used"], stats["requests_running"], server.serving.num_open) == (0, 0, 0)


def run_schemathesis(server, *options):
    pytest.importorskip("schemathesis")
    command = [sys.executable, "-m", "schemathesis.cli", "run", f"{server.url}/openapi.json", "--no-color"]
    command += ["--checks", "not_a_server_error", "--request-timeout", "60", "--seed", "1", *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    assert "Tested: 10" in done.stdout, done.stdout


def test_schemathesis_finds_no_500(server):
    run_schemathesis(server, "--phases", "fuzzing", "--max-examples", "4")


def test_schemathesis_would_find_one(server, monkeypatch):
    from octavo.gpt.server.serving import Serving

    monkeypatch.setattr(Serving, "params", lambda *_, **__: 1 / 0)
    with pytest.raises(AssertionError, match="Server error"):
        run_schemathesis(server, "--phases", "fuzzing", "--max-examples", "2", "--include-path", "/v1/score")


@pytest.mark.slow
def test_schemathesis_finds_no_500_however_long_it_looks(server):
    run_schemathesis(server, "--max-examples", "50")

"""`bench serve --url` on servers: one that answers as OpenAI's do, some that do not, and Octavo's own."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from octavo.bench.measuring.load_generator import Served
from octavo.bench.measuring.workloads import Load
from octavo.bench.reporting.vllm_keys import vllm_result

from bench_tiny import bench
from served import served

ARGUMENTS = ("--model", "dummy:gpt2", "--mix", "fixed:9:6", "--requests", "10", "--threads", "1", "--rate", "none")
KEYS = [
    *("completed", "failed", "total_input_tokens", "total_output_tokens", "request_throughput", "output_throughput"),
    *("total_token_throughput", "max_concurrency", "model_id", "request_rate", "num_prompts", "duration", "ttfts"),
    *(f"{kind}_{name}_ms" for kind in ("mean", "median", "std", "p99") for name in ("ttft", "tpot", "itl", "e2el")),
]


class Plain(BaseHTTPRequestHandler):
    """OpenAI's API and nothing more: an event a token, no ids; the last two tokens come in one event."""

    protocol_version = "HTTP/1.1"
    asked: list[dict[str, Any]]
    refuses = -1  # the request of that number is refused
    breaks = ""  # what is sent in place of tokens

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        self.answer(200, json.dumps({"data": [{"id": "some/model"}]}).encode(), "application/json")

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.asked.append(body | {"key": self.headers["Authorization"]})
        if len(self.asked) - 1 == self.refuses:
            return self.answer(503, b"full", "text/plain")
        events = [{"choices": [{"text": "a\u2028"}]} for _ in range(body["max_tokens"] - 2)] + [
            {"choices": [{"text": "bc"}]}
        ]
        usage = {"prompt_tokens": len(body["prompt"]) + 1, "completion_tokens": body["max_tokens"]}
        lines = [json.dumps(event, ensure_ascii=False) for event in [*events, {"choices": [], "usage": usage}]] + [
            "[DONE]"
        ]
        text = self.breaks or "".join(f"data: {line}\n\n" for line in lines)
        return self.answer(200, text.encode(), "text/event-stream")

    def answer(self, status: int, content: bytes, kind: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


@contextmanager
def plain(**options: Any) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Its address, and what it was asked."""
    handler = type("Handler", (Plain,), {"asked": [], **options})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.handle_error = lambda *_: None  # type: ignore[method-assign]  # a client that leaves is no news
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", handler.asked  # type: ignore[attr-defined]
    finally:
        server.shutdown()
        server.server_close()


def load(url: str, *arguments: str) -> int:
    return int(bench("serve", *ARGUMENTS, "--url", url, *arguments))


def test_a_load_on_a_plain_server_is_written_in_vllm_s_keys(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "result.json"
    with plain(refuses=3) as (url, asked):
        assert load(f"{url}/v1/", "--callers", "2", "--save-result", str(file), "--api-key", "secret") == 0
    result = json.loads(file.read_text())
    assert not [key for key in KEYS if key not in result]
    assert (result["completed"], result["failed"], result["num_prompts"]) == (9, 1, 10)
    assert (result["model_id"], result["max_concurrency"], result["request_rate"]) == ("some/model", 2, "inf")
    assert (result["total_input_tokens"], result["total_output_tokens"]) == (90, 54)  # as the server counts
    assert result["output_throughput"] == pytest.approx(54 / result["duration"])
    assert [len(gaps) for gaps in result["itls"]] == [5] * 9
    assert asked[0]["key"] == "Bearer secret"
    assert {key: asked[0][key] for key in ("model", "max_tokens", "temperature", "ignore_eos", "stream")} == {
        "model": "some/model", "max_tokens": 6, "temperature": 0, "ignore_eos": True, "stream": True,
    }  # fmt: skip
    assert "2 callers: 9 of 10 requests" in capsys.readouterr().out


def test_no_two_loads_have_the_same_prompts() -> None:
    with plain() as (url, asked):
        assert load(url, "--callers", "1,3", "--rate", "500") == 0
    assert len({tuple(body["prompt"]) for body in asked}) == len(asked) == 30


def test_octavo_s_own_server_is_driven(tmp_path: Path) -> None:
    file = tmp_path / "result.json"
    with served(tmp_path / "model") as server:
        arguments = ("--model", str(tmp_path / "model"), "--callers", "4", "--save-result", str(file))
        assert load(server.url, *arguments) == 0
    result = json.loads(file.read_text())
    assert (result["completed"], result["total_output_tokens"], result["total_input_tokens"]) == (10, 60, 90)
    assert result["model_id"] == "tiny"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"breaks": 'data: {"error": {"message": "out of memory"}}\n\n'}, "out of memory"),
        ({"breaks": "data: {oops\n\n"}, "Expecting property name"),
        ({"breaks": "data: [DONE]\n\n"}, "a request ended without a token"),
    ],
)
def test_a_server_that_fails_is_one_line(
    options: dict[str, Any], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with plain(**options) as (url, _):
        assert load(url, "--callers", "1") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert url in line
    assert message in line


def test_bad_addresses_and_files_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for url, arguments, message in (
        ("http://127.0.0.1:9", (), "http://127.0.0.1:9: "),
        ("nowhere", (), "nowhere"),
        ("http://127.0.0.1:9", ("--callers", "1,2", "--save-result", str(tmp_path / "a")), "takes one load, not 2"),
        ("http://127.0.0.1:9", ("--save-result", "/proc/a"), "cannot write to /proc/a"),
    ):
        assert load(url, "--callers", "1", *arguments) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert message in line


def test_figures_are_those_of_vllm_s_definitions() -> None:
    first, second = Served(4, 0.0, 0.0, [0.5, 0.6, 0.8], [1] * 3), Served(6, 1.0, 1.0, [2.0], [1])
    result = vllm_result([first, second, Served(1, 0.0)], Load("open", 2.5), "model", "openai")
    assert (result["completed"], result["failed"], result["request_rate"]) == (2, 1, 2.5)
    assert result["max_concurrency"] is None
    assert result["total_token_throughput"] == pytest.approx(14 / 2)
    assert (result["mean_ttft_ms"], result["std_ttft_ms"]) == pytest.approx((750, 250))
    assert result["mean_tpot_ms"] == pytest.approx(150)  # of requests with more than one token
    assert result["p99_itl_ms"] == pytest.approx(199)
    assert result["median_e2el_ms"] == pytest.approx(900)
    assert vllm_result([Served(1, 0.0)], Load("closed", 1), "model", "openai")["p99_itl_ms"] == 0

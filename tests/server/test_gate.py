"""Who is let in, what happens to those who leave, to those for whom there is no room, and at the end."""

import json
import threading
import time

import pytest

from served import served, wait_for

httpx = pytest.importorskip("httpx2")

ENDLESS = {"prompt": "the sun", "max_tokens": 90, "ignore_eos": True, "temperature": 0}


def post(server, path="/v1/completions", **body):
    return httpx.post(server.url + path, json={**ENDLESS, **body}, timeout=30)


def stats(server):
    return server.serving.llm.stats()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("served") / "model"


@pytest.fixture(scope="module")
def slow(folder):
    """A server whose steps take their time, with little room."""
    options = {"max_num_seqs": 1, "max_num_waiting": 1}
    with served(folder, options, api_key=("secret", "other"), max_body=2000) as server:
        step = server.serving.llm.engine.runner.launch

        def launch(plan):
            time.sleep(0.02)
            return step(plan)

        server.serving.llm.engine.runner.launch = launch
        yield server


KEY = {"Authorization": "Bearer secret"}


def start(server, **body):
    """A stream that has begun; a context manager."""
    return httpx.stream("POST", f"{server.url}/v1/completions", json={**ENDLESS, **body}, headers=KEY, timeout=30)


@pytest.mark.parametrize("given", [None, "Bearer wrong", "Bearer secre", "Basic secret", "secret"])
def test_a_wrong_key_is_401(slow, given):
    headers = {"Authorization": given} if given else {}
    for path in ("/v1/models", "/metrics", "/nowhere", "/openapi.json"):
        answer = httpx.get(slow.url + path, headers=headers)
        assert (answer.status_code, answer.json()["error"]["code"]) == (401, "invalid_api_key")


@pytest.mark.parametrize("given", ["Bearer secret", "bearer other"])
def test_a_right_key_opens(slow, given):
    assert httpx.get(f"{slow.url}/v1/models", headers={"Authorization": given}).status_code == 200


def test_health_and_version_need_no_key(slow):
    assert httpx.get(f"{slow.url}/health").json() == {"status": "ok"}
    assert set(httpx.get(f"{slow.url}/version").json()) == {"version"}


@pytest.mark.parametrize("streams", [True, False])
def test_a_client_that_leaves_ends_its_request(slow, streams):
    if streams:
        with start(slow, stream=True) as answer:
            lines = answer.iter_lines()  # kept: closing them closes the answer
            next(lines)
            assert stats(slow)["requests_running"] == 1
    else:
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{slow.url}/v1/completions", json=ENDLESS, headers=KEY, timeout=0.2)
    wait_for(lambda: stats(slow)["requests_running"] == 0, 0.8)  # of two seconds that the request would take
    assert stats(slow)["blocks_used"] == 0


def test_a_client_that_waits_may_leave_too(slow):
    with start(slow, stream=True) as running:
        lines = running.iter_lines()
        next(lines)
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(f"{slow.url}/v1/completions", json=ENDLESS, headers=KEY, timeout=0.2)
        wait_for(lambda: stats(slow)["requests_waiting"] == 0, 0.8)
        assert stats(slow)["requests_running"] == 1
    wait_for(lambda: slow.serving.num_open == 0)


def test_a_full_queue_is_503_with_a_time_to_come_back(slow):
    with start(slow, stream=True) as running:
        lines = running.iter_lines()
        next(lines)
        waiting = threading.Thread(target=lambda: start(slow, stream=True).__enter__().close())
        waiting.start()
        wait_for(lambda: stats(slow)["requests_waiting"] == 1)
        answer = httpx.post(f"{slow.url}/v1/completions", json=ENDLESS, headers=KEY)
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "queue_full")
        assert int(answer.headers["retry-after"]) >= 1
    waiting.join()
    wait_for(lambda: slow.serving.num_open == 0)


@pytest.mark.parametrize(
    ("content", "status", "line"),
    [
        (b'{"prompt": "' + b"x" * 2000 + b'"}', 413, "longer than this server's limit of 2000 bytes"),
        (b'{"prompt": ', 400, "the body is no JSON"),
        (b"[" * 1900, 400, ""),
        (b"\xff\xfe", 400, ""),
        (b"", 400, "the body must be a JSON object"),
        (b"[]", 400, "the body must be a JSON object"),
        (b'{"prompt": "\\ud800"}', 400, "lone surrogate"),
        (b'{"prompt": "x", "temperature": NaN}', 400, "temperature must be a number"),
        (b'{"prompt": "x", "seed": 1e400}', 400, "seed"),
    ],
)
def test_a_bad_body_is_one_line(slow, content, status, line):
    headers = KEY | {"Content-Type": "application/json"}
    answer = httpx.post(f"{slow.url}/v1/completions", content=content, headers=headers)
    assert answer.status_code == status, answer.text
    assert line.lower() in answer.json()["error"]["message"].lower()


def test_a_body_without_its_type_is_refused(slow):
    """So that a page of a stranger cannot ask this server through a browser."""
    headers = KEY | {"Content-Type": "text/plain"}
    answer = httpx.post(f"{slow.url}/v1/completions", content=b'{"prompt": "x"}', headers=headers)
    assert answer.status_code == 400
    assert "application/json" in answer.json()["error"]["message"]


@pytest.mark.parametrize(("method", "path", "status"), [("GET", "/v1/completions", 405), ("GET", "/nowhere", 404)])
def test_what_is_not_there_is_said_in_the_same_form(slow, method, path, status):
    answer = httpx.request(method, slow.url + path, headers=KEY)
    assert (answer.status_code, set(answer.json())) == (status, {"error"})


def test_the_log_has_no_control_characters(slow, capfd):
    httpx.get(f"{slow.url}/%1b[31m%0aforged%7f%c2%9b", headers=KEY)
    lines = []
    wait_for(lambda: lines.extend(capfd.readouterr().err.splitlines()) or "forged" in str(lines))
    (line,) = [line for line in lines if "forged" in line]
    assert line.isprintable()
    assert line.isascii()
    facts = json.loads(line)
    assert (facts["method"], facts["status"]) == ("GET", 404)


def test_until_the_model_is_there_calls_are_503(folder):
    go = threading.Event()
    from octavo.gpt.server.run import Server, listen
    from octavo.gpt.server.settings import Settings

    settings = Settings(port=0)
    listener = listen(settings)

    def make():
        go.wait(20)
        raise ValueError("no such model")

    server = Server(make, "slow", settings, listener)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    for path in ("/health", "/v1/models"):
        answer = httpx.get(server.url + path)
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
        assert answer.json()["error"]["message"] == "the model is being loaded"
    go.set()
    thread.join(10)
    assert not thread.is_alive()
    assert str(server.failure) == "no such model"


def test_a_port_that_is_taken_is_one_line(slow, capsys):
    from octavo.gpt.cli import main

    port = slow.url.rpartition(":")[2]
    assert main(["serve", "--port", port]) == 2
    assert capsys.readouterr().err == f"octavo: cannot listen at 127.0.0.1 port {port}: Address already in use\n"


@pytest.mark.parametrize(("timeout", "reason", "tokens"), [(10.0, "length", 90), (0.3, "abort", 60)])
def test_running_requests_end_properly_when_the_server_stops(folder, timeout, reason, tokens):
    """Those that fit into the time limit are finished, others end with what they have; none is cut off."""
    lines = []
    with served(folder, shutdown_timeout=timeout) as server:
        step = server.serving.llm.engine.runner.launch
        server.serving.llm.engine.runner.launch = lambda plan: (time.sleep(0.02), step(plan))[1]

        def read():
            with httpx.stream("POST", f"{server.url}/v1/completions", json={**ENDLESS, "stream": True}) as answer:
                lines.append([line for line in answer.iter_lines() if line])

        threads = [threading.Thread(target=read) for _ in range(8)]
        for thread in threads:
            thread.start()
        wait_for(lambda: stats(server)["requests_running"] == 8)
        server.should_exit = True
        wait_for(lambda: server.serving.is_stopping)
        assert post(server).status_code == 503
        for thread in threads:
            thread.join(20)
    assert len(lines) == 8
    for each in lines:
        assert each[-1] == "data: [DONE]"
        assert json.loads(each[-2][6:])["choices"][0]["finish_reason"] == reason
        assert tokens / 3 < len(each) or reason == "abort"

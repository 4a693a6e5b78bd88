"""bench serve: loads come from one seed, what is served under load is checked, and times are those of the callers."""

import asyncio
import random
import time
from collections import Counter
from functools import partial
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch

from octavo.bench import serve
from octavo.bench.measuring import load_generator, workloads
from octavo.bench.measuring.load_generator import Served, samples_of
from octavo.bench.measuring.roofline import Peaks
from octavo.bench.measuring.workloads import MIXES, Load, Mix, Request, arrivals
from octavo.bench.reporting import records
from octavo.gpt import QueueFullError

from bench_tiny import bench, checkpoint, serve_line
from tiny import TINY_GPT2

SMALL = ("--rate", "400", "--callers", "3", "--requests", "10", "--mix", "fixed:9:6", "--threads", "1")


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def model(request, tmp_path_factory):
    return checkpoint(tmp_path_factory.mktemp("models") / request.param, request.param)


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory):
    return checkpoint(tmp_path_factory.mktemp("models") / "gpt2", "gpt2")


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    before = torch.get_num_threads()
    monkeypatch.setattr("octavo.bench.run.measure_peaks", lambda device, dtypes: Peaks(2e10, 3e10, {"float32": 1e11}))
    yield
    torch.set_num_threads(before)


def run(model, out, *arguments):
    return bench("serve", "--model", model, "--dtype", "float32", *SMALL, "--output", out, *arguments)


def test_open_and_closed_loads_are_checked_and_measured(model, tmp_path, capsys):
    out = tmp_path / "out"
    assert run(model, out) == 0
    results = records.read(out)
    assert results.run.planned == 2
    assert [(cell.load, cell.level) for cell in results.cells] == [("closed", 3.0), ("open", 400.0)]
    for cell in results.cells:
        assert (cell.verdict, cell.detail) == ("same", "8 of 8 requests as alone")
        assert (cell.num_refused, cell.prompt_tokens, cell.output_tokens) == (0, 90, 60)
        assert len(cell.ttft_s) == 10
        assert [len(gaps) for gaps in cell.itl_s] == [5] * 10
        assert cell.output_tokens_per_s == pytest.approx(60 / cell.duration_s)
        assert cell.ttft_median_s <= cell.ttft_p90_s <= cell.ttft_p99_s
        assert cell.num_good == 10
    shown = capsys.readouterr().out
    assert shown.count("first token") == 2
    assert "8 of 8 requests" not in shown
    lines = (out / "serve.jsonl").read_text()
    assert run(model, out, "--resume") == 0
    assert (out / "serve.jsonl").read_text() == lines


def test_what_is_said_otherwise_under_load_gets_no_figure(gpt2, tmp_path, capsys, monkeypatch):
    drive = load_generator.serve

    async def spoiled(*arguments):
        served = await drive(*arguments)
        served[0].tokens = [(token + 1) % 97 for token in served[0].tokens]
        return served

    monkeypatch.setattr(serve, "serve", spoiled)
    assert run(gpt2, tmp_path / "out") == 0
    for cell in records.read(tmp_path / "out").cells:
        assert cell.verdict == "wrong"
        assert cell.detail.startswith("7 of 8 requests as alone; of the others")
        assert cell.output_tokens_per_s is None
        assert not cell.ttft_s
    assert "first token" not in capsys.readouterr().out


def test_a_model_that_is_wrong_alone_is_not_loaded(gpt2, tmp_path, monkeypatch):
    async def other(llm, request):
        return [1] * request.new_tokens

    def never(*arguments):
        raise AssertionError("loaded")

    monkeypatch.setattr(serve, "_alone", other)
    monkeypatch.setattr(serve, "serve", never)
    assert run(gpt2, tmp_path / "out") == 0
    assert {cell.verdict for cell in records.read(tmp_path / "out").cells} == {"wrong"}


def test_a_load_that_fails_is_written_down_and_the_next_goes_on(gpt2, tmp_path, monkeypatch):
    drive = load_generator.serve

    async def failing(llm, requests, load, *rest):
        if load.kind == "closed":
            raise RuntimeError("out of\nmemory")
        return await drive(llm, requests, load, *rest)

    monkeypatch.setattr(serve, "serve", failing)
    assert run(gpt2, tmp_path / "out") == 0
    words = [(cell.load, cell.verdict, cell.num_good) for cell in records.read(tmp_path / "out").cells]
    assert words == [("closed", "failed", None), ("open", "same", 10)]


def test_ctrl_c_keeps_the_loads_that_are_done(gpt2, tmp_path, capsys, monkeypatch):
    drive = load_generator.serve

    async def interrupted(llm, requests, load, *rest):
        if load.kind == "open":
            raise KeyboardInterrupt
        return await drive(llm, requests, load, *rest)

    monkeypatch.setattr(serve, "serve", interrupted)
    assert run(gpt2, tmp_path / "out") == 130
    assert [cell.load for cell in records.read(tmp_path / "out").cells] == ["closed"]
    assert "written to" in capsys.readouterr().out
    monkeypatch.setattr(serve, "serve", drive)
    assert run(gpt2, tmp_path / "out", "--resume") == 0
    assert [cell.load for cell in records.read(tmp_path / "out").cells] == ["closed", "open"]


BAD = {
    "unknown mix": (("--mix", "novel"), "mix must be sharegpt, alpaca or fixed:PROMPT:OUTPUT in tokens, not 'novel'"),
    "half a mix": (("--mix", "fixed:9"), "not 'fixed:9'"),
    "mix over the window": (("--mix", "fixed:60:5"), "both together within the window of 64"),
    "rate 0": (("--rate", "0"), "rate must be above 0 and finite, not '0'"),
    "rate nan": (("--rate", "nan"), "rate must be above 0 and finite"),
    "rate no number": (("--rate", "fast"), "rate must be numbers with commas, not 'fast'"),
    "callers 0": (("--callers", "0"), "callers must be at least 1, not 0"),
    "no load": (("--rate", "none", "--callers", "none"), "rate and callers are both none"),
    "requests 0": (("--requests", "0"), "requests must be at least 1, not 0"),
    "max-num-seqs 0": (("--max-num-seqs", "0"), "max num seqs must be at least 1, not 0"),
    "bound 0": (("--ttft-ms", "0"), "ttft-ms must be above 0, not 0"),
    "bound nan": (("--tpot-ms", "nan"), "tpot-ms must be above 0, not nan"),
    "two dtypes": (("--dtype", "float32,bfloat16"), "dtype must be one, not 2"),
    "two backends": (("--backend", "cpu,reference"), "backend must be one, not 2"),
    "unknown backend": (("--backend", "gpu"), "backend must be one of"),
    "unknown model": (("--model", "gpt5"), "unknown model 'gpt5'"),
    "cannot write": (("--output", "/proc/octavo"), "cannot write to /proc/octavo"),
}


@pytest.mark.parametrize("bad", BAD)
def test_bad_arguments_are_one_line_and_nothing_is_written(bad, gpt2, tmp_path, capsys):
    arguments, message = BAD[bad]
    assert run(gpt2, tmp_path / "out", *arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert not (tmp_path / "out").exists()


def test_a_seed_is_a_workload():
    made = [workloads.requests(TINY_GPT2, MIXES["alpaca"], 20, seed) for seed in (0, 0, 1)]
    assert made[0] == made[1] != made[2]
    assert arrivals(3.0, 20, 0) == arrivals(3.0, 20, 0) != arrivals(3.0, 20, 1)


def test_lengths_have_the_mean_and_the_tail_of_the_mix():
    generator, mix = random.Random(0), MIXES["sharegpt"]
    drawn = [mix.draw(generator, mix.output) for _ in range(20_000)]
    assert sum(drawn) / len(drawn) == pytest.approx(mix.output, rel=0.05)
    assert sorted(drawn)[10_000] == pytest.approx(mix.output / 1.6487, rel=0.05)  # the median lies below the mean
    assert Mix(9, 6, 0.0).draw(generator, 9) == 9


def test_no_request_is_over_the_window():
    for request in workloads.requests(TINY_GPT2, MIXES["sharegpt"], 200, 0):
        assert 1 <= len(request.prompt) <= 32
        assert 2 <= request.new_tokens <= 64 - len(request.prompt)


def test_arrivals_are_a_poisson_process():
    moments = arrivals(50.0, 20_001, 3)
    gaps = [after - before for before, after in pairwise(moments)]
    assert moments[0] == 0.0
    assert sum(gaps) / len(gaps) == pytest.approx(1 / 50, rel=0.03)
    counts = Counter(int(moment) for moment in moments if moment < 300)
    mean = sum(counts.values()) / 300
    variance = sum((counts[second] - mean) ** 2 for second in range(300)) / 300
    assert variance == pytest.approx(mean, rel=0.25)  # as many as are expected, not evenly spaced


class Slow:
    """Stands for AsyncLLM: a token every hundredth of a second, at most `room` requests at once, one refused."""

    def __init__(self, room):
        self.room, self.running, self.most = room, 0, 0

    async def generate(self, prompt, params):
        if prompt == [13]:
            raise QueueFullError("no room")
        self.running += 1
        self.most = max(self.most, self.running)
        tokens = []
        while len(tokens) < params.max_tokens:
            await asyncio.sleep(0.01)
            tokens = [*tokens, 7]
            yield SimpleNamespace(outputs=[SimpleNamespace(token_ids=tokens, finish_reason=None)])
        self.running -= 1


def asked(llm):
    return partial(load_generator.ask, llm)


@pytest.mark.parametrize(("load", "most"), [(Load("closed", 2), 2), (Load("open", 1e6), 8)])
def test_a_closed_loop_waits_and_an_open_one_does_not(load, most):
    llm = Slow(8)
    served = asyncio.run(load_generator.serve(asked(llm), [Request([i], 3) for i in range(8)], load, 0))
    assert llm.most == most
    for request in served:
        assert request.tokens == [7, 7, 7]
        assert len(request.gaps) == 2
        assert min(request.ttft, *request.gaps) >= 0.009


def test_what_waits_for_a_late_generator_is_counted():
    """The event loop is held up while a request is due: its first token counts from the moment it was due."""

    async def main():
        llm = Slow(8)

        async def held_up():
            await asyncio.sleep(0)
            time.sleep(0.2)

        task = asyncio.create_task(held_up())
        served = await load_generator.serve(asked(llm), [Request([i], 2) for i in range(4)], Load("open", 100.0), 0)
        await task
        return served

    served = asyncio.run(main())
    assert served[1].ttft > 0.1
    assert samples_of(served)["late_s"] > 0.1


def test_a_refused_request_is_counted_and_not_timed():
    served = asyncio.run(
        load_generator.serve(asked(Slow(8)), [Request([12], 2), Request([13], 2)], Load("closed", 2), 0)
    )
    found = serve_line(served, "closed", 2)
    assert (found.num_refused, len(found.ttft_s), found.output_tokens) == (1, 1, 2)
    assert samples_of(served[1:]) == {"num_refused": 1}
    assert serve_line(served[1:], "closed", 2).num_good is None


def test_goodput_needs_both_bounds():
    slow_start = Served(1, 0.0, 0.0, [3.0, 3.1], [7, 7])
    slow_gaps = Served(1, 0.0, 0.0, [0.5, 1.5, 2.5], [7, 7, 7])
    good = Served(1, 1.0, 1.0, [1.5, 1.6, 1.8], [7, 7, 7])  # one gap over the bound, the mean is not
    found = serve_line([slow_start, slow_gaps, good], "open", 1, tpot_bound_s=0.16)
    assert (found.num_good, found.duration_s) == (1, pytest.approx(3.1))
    assert found.goodput_per_s == pytest.approx(1 / 3.1)
    assert found.output_tokens_per_s == pytest.approx(8 / 3.1)

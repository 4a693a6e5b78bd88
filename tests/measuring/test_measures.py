"""What the figures rest on: clocks, percentiles, workloads, memory, the roofline's bytes and FLOPs."""

import subprocess
import time

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from octavo.bench.measuring import machine, roofline, timing, workloads
from octavo.bench.measuring.machine import PeakMemory
from octavo.bench.measuring.workloads import EFFORTS, GridPoint
from octavo.gpt.models.registry import KNOWN_SHAPES

from tiny import TINY, tiny_model

CPU = torch.device("cpu")


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 0.99, 1.0])
def test_percentiles_are_numpys(share):
    samples = np.random.default_rng(0).exponential(size=37).tolist()
    assert timing.percentile(samples, share) == pytest.approx(np.quantile(samples, share))
    assert timing.percentile([2.5], share) == 2.5


def test_spread_is_a_share_of_the_median():
    assert timing.spread([1.0, 2.0, 3.0]) == pytest.approx((2.8 - 1.2) / 2)
    assert timing.spread([3.0, 3.0]) == 0


def test_laps_lie_between_marks(monkeypatch):
    ticks = iter([10.0, 10.5, 12.5])
    monkeypatch.setattr(time, "perf_counter", lambda: next(ticks))
    watch = timing.Stopwatch(CPU)
    for _ in range(3):
        watch.mark()
    assert watch.laps() == [0.5, 2.0]


def test_measure_flushes_before_each_call_and_leaves_the_warm_up_out(monkeypatch):
    events: list[str] = []
    monkeypatch.setattr(timing.ColdCaches, "__call__", lambda self: events.append("flush"))
    laps = timing.measure(lambda: events.append("call"), CPU, seconds=0.0, min_rounds=4)
    assert len(laps) == 4
    assert events == ["call"] * 2 + ["flush", "call"] * 4


def test_the_flush_is_larger_than_the_last_cache():
    caches = timing.ColdCaches(CPU)
    caches()
    assert caches.buffer.nbytes >= 2 * timing._cache_bytes(CPU) > 2**20


def test_peak_memory_counts_what_was_kept_and_what_was_given_back():
    def allocate(megabytes):
        return torch.ones(megabytes * 2**20, dtype=torch.uint8)

    ours, theirs = PeakMemory(CPU), PeakMemory(CPU)
    with ours.at_work():
        kept = allocate(64)
    if ours.peak is None:
        pytest.skip("the system does not tell")
    with theirs.at_work():
        other = allocate(256)
    with ours.at_work():
        allocate(128)  # and given back
    assert 180 < ours.peak / 2**20 < 220
    assert 60 < ours.held / 2**20 < 80
    with ours.at_work():
        pass
    assert 60 < ours.peak / 2**20 < 80
    assert 250 < theirs.peak / 2**20 < 280
    assert kept.nbytes + other.nbytes == 320 * 2**20


@pytest.mark.parametrize("name", ["gpt2", "llama-3.2-1b", "smollm2"])
def test_prompts_are_seeded_and_never_met_again(name):
    config, cell = KNOWN_SHAPES[name], GridPoint(3, 16, 16, 4)
    first = workloads.prompts(config, cell, seed=1, repeat=0)
    assert first == workloads.prompts(config, cell, seed=1, repeat=0)
    others = [workloads.prompts(config, cell, seed, repeat) for seed, repeat in ((1, 1), (2, 0))]
    rows = [tuple(row) for prompts in (first, *others) for row in prompts]
    assert len(set(rows)) == len(rows) == 9
    assert all(len(row) == 16 for row in rows)
    ids = {token_id for row in rows for token_id in row}
    assert not ids & {config.bos_id, *config.eos_ids}
    assert max(ids) < config.vocab_size


def test_no_prompt_of_a_run_begins_as_another_does():
    """Nor those of another cell: a prefix that was cached there would be prefilled for nothing here."""
    config = KNOWN_SHAPES["gpt2"]
    cells = [GridPoint(batch, context, context, 4) for batch in (1, 5) for context in (8, 16)]
    begins = [tuple(p[:8]) for cell in cells for repeat in (0, 1) for p in workloads.prompts(config, cell, 0, repeat)]
    assert len(set(begins)) == len(begins)


@pytest.mark.parametrize(
    ("batch", "context", "expected"),
    [
        (1, 128, GridPoint(1, 128, 128, 33)),
        (1, 1024, GridPoint(1, 1024, 991, 33)),  # the window holds prompt and output
        (1, 1000, GridPoint(1, 1000, 991, 33)),
        (64, 512, GridPoint(64, 512, 512, 49)),  # prefilled in 16 steps, in which the first of them decode
    ],
)
def test_a_cell_fits_its_window(batch, context, expected):
    assert workloads.grid_point(KNOWN_SHAPES["gpt2"], batch, context, 33) == expected


def test_every_machine_has_a_grid_for_every_effort():
    assert set(EFFORTS) == {(d, e) for d in ("cpu", "cuda") for e in ("quick", "normal", "full")}


def flops(call) -> int:
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


@pytest.mark.parametrize("family", TINY)
def test_the_roofline_counts_what_the_network_computes(family):
    """PyTorch's counter sees every product; dense attention computes the square of which causal needs half."""
    config = TINY[family]
    model, batch, length = tiny_model(config), 3, 16
    counted = flops(lambda: model.loss(torch.zeros(batch, length, dtype=torch.int32)))
    square = 4 * config.num_layers * config.num_heads * config.head_dim * length**2 * batch
    head = 2 * config.vocab_size * config.dim * batch * (length - 1)  # prefill needs the last position's logits only
    assert roofline.prefill_flops(config, batch, length) == counted - head - square // 2
    step = roofline.step_flops(config, batch, length)
    attention = 4 * config.num_layers * config.num_heads * config.head_dim * length * batch
    assert step - attention == (counted - square) // length


@pytest.mark.parametrize("family", TINY)
def test_the_roofline_counts_the_weights_that_a_step_reads(family):
    config = TINY[family]
    read = {name: t for name, t in tiny_model(config).named_parameters() if t.dim() > 1 and not name.startswith("wpe")}
    if not config.tied_embeddings:
        del read["embed_tokens.weight"]
    weights = sum(t.numel() for t in read.values())
    assert roofline.step_weights(config) == weights
    cache = 2 * config.num_layers * config.num_kv_heads * config.head_dim * 5 * 40
    assert roofline.step_bytes(config, 4.0, 4, batch=5, context=40) == 4 * (weights + cache)
    assert roofline.step_bytes(config, 0.5, 2, batch=5, context=40) == weights // 2 + 2 * cache


def test_peaks_are_rates(monkeypatch):
    monkeypatch.setattr(roofline, "_seconds", lambda call, device: call() is None or 0.5)
    peaks = roofline.measure_peaks(CPU, ("float32",))
    assert peaks.copy_bytes_per_s == 2 * peaks.read_bytes_per_s == 2**28 * 4
    assert peaks.matmul_flops_per_s == {"float32": 2 * 1024**3 / 0.5}


def test_the_machine_describes_itself():
    about = machine.describe(CPU, ["numpy", "no-such-package"])
    assert about["device"] == "cpu"
    assert about["device_name"]
    assert about["num_cores"] >= 1
    assert about["versions"]["torch"] == torch.__version__
    assert "no-such-package" not in about["versions"]
    assert about["command_line"].startswith("python -m octavo.bench")


def test_others_at_work_are_seen(monkeypatch):
    assert machine.busy_cores() is None or machine.busy_cores() >= 0
    seconds = iter((3.0, 3.0 + 1.5 * machine.LOOK_S, None, None))
    monkeypatch.setattr(machine, "_busy_s", lambda: next(seconds))
    assert machine.busy_cores() == 1.5
    assert machine.busy_cores() is None


def test_results_do_not_make_a_checkout_dirty(tmp_path):
    def git(*words):
        subprocess.run(["git", "-C", tmp_path, "-c", "user.name=x", "-c", "user.email=x", *words], check=True)

    files = [tmp_path / name for name in ("README.md", "bench/results/cpu.jsonl", "bench/code.py")]
    files[1].parent.mkdir(parents=True)
    for file in files:
        file.write_text("old")
    git("init", "--quiet")
    git("add", ".")
    git("commit", "--quiet", "-m", "all")
    files[0].write_text("new")
    files[1].unlink()
    assert machine.changes(files[2].parent) == ""
    files[2].write_text("new")
    assert machine.changes(files[2].parent) == "M bench/code.py"

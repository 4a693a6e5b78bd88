"""bench ops and bench host, as commands on tiny networks."""

import pytest
import torch

from octavo.bench.host import Instant, instant_engine, time_steps
from octavo.bench.measuring.op_cases import Shapes, cases, skewed
from octavo.bench.measuring.roofline import Peaks
from octavo.bench.peers.kernels import flashinfer_op, torch_op
from octavo.bench.reporting import records
from octavo.bench.reporting.tables import TARGETS
from octavo.gpt import SamplingParams
from octavo.kernels.backends import load
from octavo.kernels.ops import OP_NAMES, REFERENCE

from bench_tiny import bench, checkpoint
from tiny import TINY_GPT2

pytestmark = pytest.mark.slow  # whole benchmarks, as a user runs them

SIZES = ("--batch", "2", "--context", "20", "--prefill", "17", "--threads", "1")


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    before = torch.get_num_threads()
    peaks = Peaks(2e10, 3e10, {"float32": 1e11})
    monkeypatch.setattr("octavo.bench.run.measure_peaks", lambda device, dtypes: peaks)
    monkeypatch.setattr("octavo.bench.ops.SECONDS", {"cpu": 0.0, "cuda": 0.0})
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def model(request, tmp_path_factory):
    return checkpoint(tmp_path_factory.mktemp("models") / request.param, request.param)


def test_ops_are_checked_and_measured(model, tmp_path, capsys):
    out = tmp_path / "out"
    command = ("ops", "--model", model, "--dtype", "float32", *SIZES, "--output", out)
    assert bench(*command) == 0
    cells = records.read(out).cells
    assert {cell.verdict for cell in cells} <= {"same", "rounding"}
    assert {cell.op for cell in cells} <= set(OP_NAMES)
    assert {cell.backend for cell in cells} == {"reference", "cpu", "torch"}
    for cell in cells:
        assert len(cell.samples) >= 5
        assert cell.p10_s <= cell.median_s <= cell.p90_s
        assert cell.bandwidth_share == pytest.approx(cell.num_bytes / cell.median_s / 3e10)
    own = {cell.op for cell in cells if cell.backend == "cpu"}
    cpu = load("cpu")
    assert own == {cell.op for cell in cells if getattr(cpu, cell.op) is not getattr(REFERENCE, cell.op)}
    shown = capsys.readouterr().out
    assert "paged_attention" in shown
    lines = (out / "ops.jsonl").read_text()
    assert bench(*command, "--resume") == 0
    assert (out / "ops.jsonl").read_text() == lines


def test_an_op_that_fails_is_written_down(model, tmp_path, monkeypatch):
    def broken(case, arguments):
        def run():
            raise RuntimeError("no kernel\nfor this")

        return run if case.op == "write_kv" else None

    monkeypatch.setattr("octavo.bench.ops.PEER_OPS", {"peer": broken})
    command = (
        "ops",
        "--model",
        model,
        "--dtype",
        "float32",
        *SIZES,
        "--only",
        "write_kv",
        "--output",
        tmp_path / "out",
    )
    assert bench(*command) == 0
    peer = [cell for cell in records.read(tmp_path / "out").cells if cell.backend == "peer"]
    assert {(cell.verdict, cell.detail, cell.median_s) for cell in peer} == {("failed", "no kernel for this", None)}


BAD = {
    "unknown op": (("--only", "softmax"), "unknown op 'softmax': this model has"),
    "batch 0": (("--batch", "0"), "batch must be at least 1, not 0"),
    "prefill 0": (("--prefill", "0"), "prefill must be at least 1, not 0"),
    "unknown backend": (("--backend", "gpu"), "backend must be one of"),
}


@pytest.mark.parametrize("bad", BAD)
def test_bad_arguments_of_ops(bad, model, tmp_path, capsys):
    arguments, message = BAD[bad]
    assert bench("ops", "--model", model, *SIZES, *arguments, "--output", tmp_path / "out") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line
    assert not (tmp_path / "out").exists()


def test_flashinfer_is_optional(monkeypatch):
    monkeypatch.setattr("octavo.bench.peers.kernels.find_spec", lambda name: None)
    assert flashinfer_op(None, ()) is None


def test_torch_has_three_kernels_of_its_own():
    found = cases(Shapes(TINY_GPT2, torch.device("cpu"), torch.float32, 2, 20, 17, 0))
    own = {case.op for case in found if torch_op(case, case.make())}
    assert own == {"causal_attention", "paged_attention", "lm_head_sample"}


@pytest.mark.parametrize("num_seqs", [1, 2, 10, 64])
def test_skewed_lengths_are_one_to_a_hundred_at_the_same_total(num_seqs):
    lengths = skewed(num_seqs, num_seqs * 1024)
    assert num_seqs * 1024 - num_seqs <= sum(lengths) <= num_seqs * 1024
    assert num_seqs == 1 or 98 < max(lengths) / min(lengths) < 115


def test_several_sizes_are_one_case_each(model, tmp_path):
    command = ("ops", "--model", model, "--dtype", "float32", "--threads", "1", "--only", "paged_attention,write_kv")
    sizes = ("--batch", "1,2", "--context", "9,20", "--prefill", "17,18")
    assert bench(*command, *sizes, "--output", tmp_path / "out") == 0
    shapes = [cell.shape for cell in records.read(tmp_path / "out").cells if cell.backend == "reference"]
    assert len(shapes) == len(set(shapes)) == 2 * 2 * 2 + 2 + 2  # uniform and skewed; decode and prefill of write_kv


def test_host_costs_are_measured(tmp_path, capsys):
    command = ("host", "--seqs", "1,3", "--context", "20,40", "--steps", "30", "--tokenizer", "none")
    assert bench(*command, "--output", tmp_path / "out") == 0
    results = records.read(tmp_path / "out")
    assert [cell.key for cell in results.cells] == [(n, length, "fused") for n in (1, 3) for length in (20, 40)]
    for cell in results.cells:
        assert len(cell.samples) == 29
        assert 0 < cell.median_s <= cell.p90_s
        assert 200 < cell.bytes_per_waiting < 20_000
    assert results.run.threads == 1
    assert "wanted" in capsys.readouterr().out


def test_the_price_of_a_form_is_measured(tmp_path, capsys):
    command = ("host", "--seqs", "2", "--context", "20", "--steps", "20", "--structured")
    assert bench(*command, "--output", tmp_path / "out") == 0
    assert [cell.way for cell in records.read(tmp_path / "out").cells] == ["fused", "from logits", "in a schema"]
    assert "in a schema" in capsys.readouterr().out
    assert bench(*command, "--tokenizer", "none", "--output", tmp_path / "other") == 2


@pytest.mark.parametrize(("option", "message"), [("--seqs", "seqs"), ("--context", "context"), ("--steps", "steps")])
def test_bad_arguments_of_host(option, message, tmp_path, capsys):
    assert bench("host", "--tokenizer", "none", option, "0", "--output", tmp_path / "out") == 2
    assert f"{message} must be at least 1, not 0" in capsys.readouterr().err


def test_the_model_that_returns_at_once_computes_nothing():
    engine = instant_engine(3, 20, 10, None, seed=0)
    model = engine.runner.model
    assert isinstance(model, Instant)
    assert not list(model.parameters())
    requests = [engine.add([1] * 20, SamplingParams(max_tokens=8, ignore_eos=True)) for _ in range(3)]
    while engine.has_unfinished:
        engine.step()
    outputs = [request.outputs[0].token_ids for request in requests]
    assert all(len(tokens) == 8 for tokens in outputs)
    assert len({token for tokens in outputs for token in tokens}) > 3, "ids vary, as detokenising depends on them"


def test_every_timed_step_decodes_every_sequence(monkeypatch):
    from octavo.gpt.engine import Engine

    counts, step = [], Engine.step

    def counted(self):
        touched = step(self)
        counts.append(len(touched))
        return touched

    monkeypatch.setattr(Engine, "step", counted)
    record = time_steps(5, 33, 12, None, None, seed=0)
    assert counts[-11:] == [5] * 11
    assert len(record.samples) == 11


def test_targets_are_those_of_one_core():
    assert TARGETS == {1: (60, 30), 64: (150, 80), 256: (400, 200)}

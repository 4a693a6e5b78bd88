"""bench decode, end to end on tiny networks: what is printed was checked, what was measured stays."""

import re
from dataclasses import replace

import pytest
import torch

from octavo.bench import options
from octavo.bench.measuring.decoding import DecodePlan, DecodeRun
from octavo.bench.measuring.roofline import Peaks
from octavo.bench.measuring.workloads import EFFORTS, Effort
from octavo.bench.peers import formats, registry
from octavo.bench.peers.base import Octavo
from octavo.bench.reporting import records
from octavo.kernels.ops import REFERENCE

from bench_tiny import bench, checkpoint

pytestmark = pytest.mark.slow  # whole benchmarks, as a user runs them

GRID = ("--batch", "1,3", "--context", "8,16", "--new-tokens", "5", "--quick", "--threads", "1")


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def model(request, tmp_path_factory):
    return checkpoint(tmp_path_factory.mktemp("models") / request.param, request.param)


@pytest.fixture(scope="module")
def gpt2(tmp_path_factory):
    return checkpoint(tmp_path_factory.mktemp("models") / "gpt2", "gpt2")


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    """Known peaks and two repeats; the threads as they were."""
    before = torch.get_num_threads()
    peaks = Peaks(2e10, 3e10, {"float32": 1e11, "bfloat16": 2e11})
    monkeypatch.setattr("octavo.bench.run.measure_peaks", lambda device, dtypes: peaks)
    monkeypatch.setitem(EFFORTS, ("cpu", "quick"), Effort((1, 8), (128,), 2, 2, 0.0, 5))
    yield
    torch.set_num_threads(before)


def test_a_grid_with_a_peer(model, tmp_path, capsys):
    out = tmp_path / "out"
    assert (
        bench("decode", "--model", model, *GRID, "--peers", "transformers", "--output", out, "--dtype", "float32") == 0
    )
    results = records.read(out)
    assert [cell.contender for cell in results.cells] == [
        name for _ in range(4) for name in ("octavo:cpu", "octavo:reference", "transformers")
    ]
    assert results.run.planned == len(results.cells) == 12
    assert {cell.verdict for cell in results.cells} == {"same"}
    for cell in results.cells:
        assert len(cell.ttft_s) == len(cell.step_s) == 2
        assert all(len(steps) == cell.new_tokens - 1 for steps in cell.step_s)
        assert cell.decode_tokens_per_s == pytest.approx(cell.batch / cell.tpot_median_s)
        assert cell.prefill_tokens_per_s == pytest.approx(cell.batch * cell.context / cell.ttft_median_s)
        assert cell.tpot_median_s <= cell.tpot_p90_s <= cell.tpot_p99_s
    shown = capsys.readouterr().out
    assert shown.count("tokens/s ") == 12
    assert f"written to {out}/decode.jsonl" in shown.replace("\n", "")


def test_bfloat16_is_judged_by_its_own_rounding(model, tmp_path):
    assert bench("decode", "--model", model, *GRID, "--dtype", "bfloat16", "--output", tmp_path / "out") == 0
    assert {cell.verdict for cell in records.read(tmp_path / "out").cells} <= {"same", "rounding"}


def test_weights_of_one_byte_are_marked_as_other_weights(model, tmp_path):
    out = tmp_path / "out"
    assert bench("decode", "--model", model, *GRID, "--dtype", "float32", "--weights", "q8_0", "--output", out) == 0
    results = records.read(out)
    assert len(results.cells) == results.run.planned == 16
    own = [cell for cell in results.cells if cell.dtype == "q8_0"]
    assert {cell.contender for cell in own if cell.passed} == {"octavo:cpu", "octavo:reference"}
    assert {cell.verdict for cell in own} <= {"same", "quantised"}
    whole = next(cell for cell in results.cells if (cell.contender, cell.dtype) == ("octavo:cpu", "float32"))
    assert next(cell for cell in own if cell.passed).step_bytes < whole.step_bytes / 2


def test_a_format_that_there_are_no_products_for_is_one_line(model, tmp_path, monkeypatch):
    out = tmp_path / "out"
    monkeypatch.setattr(formats, "QUANTISED", formats.QUANTISED | {"q1_0": 0.2})
    monkeypatch.setattr(options, "FORMATS", (*formats.FORMATS, "q1_0"))
    monkeypatch.setattr(formats, "FORMATS", (*formats.FORMATS, "q1_0"))
    wanted = ("--weights", "q8_0,q1_0,file", "--dtype", "float32", "--backend", "cpu", "--batch", "1")
    assert bench("decode", "--model", model, *GRID, *wanted, "--output", out) == 0
    said = {cell.dtype: (cell.verdict, cell.detail) for cell in records.read(out).cells}
    assert said["q1_0"][0] == said["file"][0] == "unsupported"
    assert said["q1_0"][1].startswith("weights must be auto, ")
    assert said["file"][1] == f"{model} is no GGUF file"
    assert said["q8_0"][0] in ("same", "quantised")


def worse(x, weight, *rest, **kwargs):
    """A product whose first token of a batch is slightly, then clearly wrong: only the tokens tell."""
    return REFERENCE.linear(x, weight, *rest, **kwargs).flip(-1)


def test_a_wrong_backend_gets_no_figure(gpt2, tmp_path, capsys, monkeypatch):
    bad = replace(REFERENCE, name="bad", linear=worse)
    monkeypatch.setattr("octavo.bench.options.backend", lambda name: bad)
    out = tmp_path / "out"
    assert bench("decode", "--model", gpt2, *GRID, "--backend", "reference", "--dtype", "float32", "--output", out) == 0
    for cell in records.read(out).cells:
        assert (cell.contender, cell.verdict, cell.passed) == ("octavo:bad", "wrong", False)
        assert cell.step_s == []
        assert cell.decode_tokens_per_s is None
    shown = capsys.readouterr().out
    assert "tokens/s " not in shown
    assert "agree, gap" in shown


def test_a_contender_that_crashes_is_written_down_and_the_others_go_on(gpt2, tmp_path, monkeypatch):
    generate = Octavo.generate

    def crash(self, prompts, new_tokens):
        if self.name == "octavo:cpu" and len(prompts) == 3:
            raise RuntimeError("out of\nmemory")
        return generate(self, prompts, new_tokens)

    monkeypatch.setattr(Octavo, "generate", crash)
    assert bench("decode", "--model", gpt2, *GRID, "--output", tmp_path / "out") == 0
    cells = records.read(tmp_path / "out").cells
    failed = [(cell.contender, cell.batch) for cell in cells if cell.verdict == "failed"]
    assert failed == [("octavo:cpu", 3)] * 2
    assert sum(cell.passed for cell in cells) == 6
    assert {cell.detail for cell in cells if cell.verdict == "failed"} == {"out of memory"}


def test_ctrl_c_keeps_what_is_done_and_resume_does_the_rest(gpt2, tmp_path, capsys, monkeypatch):
    out, check, calls = tmp_path / "out", DecodeRun._check, []

    def interrupted(self, measurement):
        calls.append(measurement.record.key)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return check(self, measurement)

    monkeypatch.setattr(DecodeRun, "_check", interrupted)
    command = ("decode", "--model", gpt2, *GRID, "--output", out)
    assert bench(*command) == 130
    assert len(records.read(out).cells) == 2  # both contenders at the first cell
    assert "written to" in capsys.readouterr().out
    first = (out / "decode.jsonl").read_text()
    assert bench(*command, "--resume") == 0
    assert len(calls) == 4 + 6  # the two that were done are not measured again
    assert (out / "decode.jsonl").read_text().startswith(first)
    assert len({cell.key for cell in records.read(out).cells}) == 8
    assert bench(*command, "--resume") == 0
    assert len(calls) == 10


def test_contenders_of_a_dtype_take_turns(gpt2, tmp_path, monkeypatch):
    generate, calls = Octavo.generate, []

    def noted(self, prompts, new_tokens):
        calls.append((self.name, self.dtype, len(prompts), len(prompts[0])))
        return generate(self, prompts, new_tokens)

    monkeypatch.setattr(Octavo, "generate", noted)
    assert bench("decode", "--model", gpt2, *GRID, "--dtype", "float32,bfloat16", "--output", tmp_path / "out") == 0
    turns = [("octavo:cpu", "octavo:reference")[i % 2] for i in range(len(calls))]
    names = [name for name, *_ in calls]
    assert names in (turns, turns[1:] + turns[:1])
    cells = [call[1:] for call in calls]
    assert len(set(cells)) == 8
    assert all(cells[i] == cells[i + 1] for i in range(0, len(cells), 2))


def test_a_peer_that_disturbs_others_is_open_alone():
    own, quiet, loud = REFERENCE, "llama.cpp", "ctranslate2"
    plan = DecodePlan(None, torch.device("cpu"), ("float32", "bfloat16"), (own,), (quiet, loud), (), None, 0)
    assert list(plan.groups.values()) == [
        [(own, "float32"), (quiet, "float32")], [(loud, "float32")],
        [(own, "bfloat16"), (quiet, "bfloat16")], [(loud, "bfloat16")],
    ]  # fmt: skip
    on_gpu = replace(plan, device=torch.device("cuda"))
    assert list(on_gpu.groups.values()) == [[entry] for entry in plan.entries]


def test_formats_stand_beside_a_peers_same_ones():
    llama, dense = "llama.cpp", REFERENCE
    precisions = ("float32", "q4_0", "q8_0", "file")
    plan = DecodePlan(None, torch.device("cpu"), precisions, (dense,), (llama,), (), None, 0)
    assert list(plan.groups.values()) == [
        [(dense, "float32"), (llama, "float32")], [(dense, "q4_0"), (f"{llama}:q4_0", "q4_0")],
        [(dense, "q8_0"), (f"{llama}:q8_0", "q8_0")], [(dense, "file"), (f"{llama}:file", "file")],
    ]  # fmt: skip


def test_a_peer_of_files_alone_stands_beside_them_only():
    plan = DecodePlan(None, torch.device("cpu"), ("float32", "q8_0", "file"), (REFERENCE,), ("openvino",), (), None, 0)
    assert plan.groups["file"] == [(REFERENCE, "file"), ("openvino:file", "file")]
    assert [len(group) for group in plan.groups.values()] == [1, 1, 2]
    assert plan.idle_peers == []
    assert replace(plan, dtypes=("float32", "q8_0")).idle_peers == ["openvino"]


def test_resume_refuses_another_commit_and_a_file_cut_short(gpt2, tmp_path, capsys):
    out = tmp_path / "out"
    command = ("decode", "--model", gpt2, "--batch", "1", "--context", "8", "--new-tokens", "3", "--output", out)
    assert bench(*command, "--quick") == 0
    file = out / "decode.jsonl"
    text = file.read_text()
    assert refused(capsys, *command).startswith(f"octavo.bench: {file} exists: --resume goes on with it")
    commit = records.read(out).run.commit
    file.write_text(re.sub(r'"commit": ("\w+"|null)', '"commit": "feed"', text))
    assert f"was measured with commit feed, here it is {commit}" in refused(capsys, *command, "--resume")
    file.write_text(text[:-20])
    assert "line 3 is cut short" in refused(capsys, *command, "--resume")
    assert file.read_text() == text[:-20]


def refused(capsys, *arguments):
    """The one line that a command is refused with."""
    capsys.readouterr()
    assert bench(*arguments) == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    return lines[0]


BAD = {
    "unknown model": (("--model", "gpt5"), "unknown model 'gpt5'"),
    "unknown shape": (("--model", "dummy:gpt5"), "unknown model 'dummy:gpt5': dummy models are dummy:gpt2"),
    "no such file": (("--model", "./nothing.gguf"), "no such file or folder"),
    "unknown backend": (
        ("--backend", "cuda"),
        "backend must be one of reference, cpu, triton or package.module:NAME, not 'cuda'",
    ),
    "unknown op": (("--backend", "cpu-softmax"), "backend 'cpu-softmax': 'softmax' is no op"),
    "unknown dtype": (("--dtype", "int4"), "dtype must be auto, float32, bfloat16, float16, not 'int4'"),
    "unknown weights": (
        ("--weights", "int3"),
        f"weights must be auto or {', '.join(formats.FORMATS)}, not 'int3'",
    ),
    "unknown peer": (("--peers", "pytorch"), "unknown peer 'pytorch': peers are transformers, llama.cpp"),
    "unknown variant": (
        ("--peers", "llama.cpp:q1"),
        "unknown peer 'llama.cpp:q1': llama.cpp has llama.cpp:f16, llama.cpp:q8_0",
    ),
    "unknown device": (("--device", "tpu"), "device must be auto, cpu or cuda, not 'tpu'"),
    "batch 0": (("--batch", "0,4"), "batch must be at least 1, not 0"),
    "batch no number": (("--batch", "1,x"), "batch must be whole numbers with commas, not '1,x'"),
    "empty entry": (("--context", "8,,16"), "context must be whole numbers with commas, not '8,,16'"),
    "context over the window": (("--context", "65"), "context 65 is over the model's window of 64"),
    "context 1": (("--context", "1"), "context must be at least 2, not 1"),
    "no room": (("--new-tokens", "64"), "64 new tokens leave no room for a prompt in the window of 64"),
    "one token": (("--new-tokens", "1"), "new tokens must be at least 2, not 1"),
    "threads 0": (("--threads", "0"), "threads must be at least 1, not 0"),
    "unknown option": (("--speed", "9"), "unrecognized arguments: --speed 9"),
    "no number": (("--seed", "x"), "argument --seed: invalid int value: 'x'"),
}


@pytest.mark.parametrize("bad", BAD)
def test_bad_arguments_are_one_line_and_nothing_is_written(bad, gpt2, tmp_path, capsys):
    arguments, message = BAD[bad]
    out = tmp_path / "out"
    assert message in refused(capsys, "decode", "--model", gpt2, "--output", out, *GRID, *arguments)
    assert not out.exists()


@pytest.mark.parametrize("blocked", ["file in the way", "no folder can be"])
def test_a_folder_that_cannot_be_written(blocked, gpt2, tmp_path, capsys):
    (tmp_path / "file").write_text("mine")
    out = tmp_path / "file" / "deeper" if blocked == "file in the way" else "/proc/octavo"
    assert f"cannot write to {out}" in refused(capsys, "decode", "--model", gpt2, *GRID, "--output", out)
    assert (tmp_path / "file").read_text() == "mine"


def test_the_interpreter_is_not_timed(gpt2, tmp_path, capsys):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    line = refused(capsys, "decode", "--model", gpt2, *GRID, "--backend", "triton", "--output", tmp_path / "out")
    assert "needs a CUDA device: the interpreter's times mean nothing" in line


def test_an_ablation_takes_an_op_back_to_the_reference():
    from octavo.bench.peers.base import backend
    from octavo.kernels.backends import load

    found = backend("cpu-rope-linear")
    assert found.name == "cpu-rope-linear"
    assert (found.rope, found.linear) == (REFERENCE.rope, REFERENCE.linear)
    assert found.write_kv is load("cpu").write_kv


@pytest.mark.parametrize("op", ["rms_norm", "add_rms_norm", "rope", "linear", "lm_head_sample", "write_kv", "sample"])
def test_an_ablation_differs_from_the_backend_in_its_op_alone(op):
    from octavo.bench.peers.base import backend
    from octavo.kernels.backends import load
    from octavo.kernels.ops import OP_NAMES

    whole, without = load("cpu"), backend(f"cpu-{op}")
    assert [name for name in OP_NAMES if getattr(whole, name) is not getattr(without, name)] == [op]


def test_a_peer_without_the_dtype_says_so_where_its_own_dtype_runs_too(gpt2, tmp_path, monkeypatch):
    class Float32Only(Octavo):
        def __init__(self, settings):
            super().__init__(replace(settings, dtype="float32"), REFERENCE)
            self.name = "transformers"

    monkeypatch.setattr(registry, "open_peer", lambda name, settings: Float32Only(settings))
    command = ("decode", "--model", gpt2, *GRID, "--backend", "reference", "--peers", "transformers")
    for number, (dtypes, words) in enumerate((("bfloat16,float32", ["unsupported", "same"]), ("bfloat16", ["same"]))):
        out = tmp_path / str(number)
        assert bench(*command, "--dtype", dtypes, "--output", out) == 0
        results = records.read(out)
        assert len(results.cells) == results.run.planned
        own = [cell for cell in results.cells if cell.contender == "transformers"]
        assert list(dict.fromkeys(cell.verdict for cell in own)) == words
        assert {cell.dtype for cell in own if cell.passed} == {"float32"}


def test_dummy_weights_are_labelled(tmp_path, capsys, monkeypatch):
    from octavo.gpt.models.registry import KNOWN_SHAPES

    from tiny import TINY_GPT2

    monkeypatch.setitem(KNOWN_SHAPES, "tiny", TINY_GPT2)
    command = ("decode", "--model", "dummy:tiny", "--peers", "transformers", *GRID, "--output", tmp_path / "out")
    assert bench(*command) == 0
    assert "dummy:tiny (random weights)" in capsys.readouterr().out
    cells = records.read(tmp_path / "out").cells
    assert all(cell.dummy for cell in cells)
    assert {cell.verdict for cell in cells} <= {"same", "rounding"}

"""A backend in somebody else's package: loaded by its path, checked in one call, run, timed and compared."""

import os
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from octavo.bench.measuring.roofline import Peaks
from octavo.bench.peers.base import backend
from octavo.bench.reporting import records
from octavo.gpt import LLM, SamplingParams
from octavo.gpt.cli import main
from octavo.kernels import backends, testing
from octavo.kernels.ops import REFERENCE

from bench_tiny import bench, checkpoint

PACKAGE = """
from dataclasses import replace

import torch

from octavo.kernels import backends
from octavo.kernels.ops import REFERENCE


def turned(x, cos, sin, interleaved):
    x, rest = x[..., : 2 * cos.shape[-1]], x[..., 2 * cos.shape[-1] :]
    a, b = (x[..., 0::2], x[..., 1::2]) if interleaved else x.chunk(2, -1)
    pair = a * cos - b * sin, b * cos + a * sin
    pairs = torch.stack(pair, -1).flatten(-2) if interleaved else torch.cat(pair, -1)
    return torch.cat((pairs.to(x.dtype), rest), -1)


def right_rope(q, k, positions, cos, sin, interleaved=False):
    cos, sin = (table[positions.long()].unsqueeze(1) for table in (cos, sin))
    return turned(q, cos, sin, interleaved), turned(k, cos, sin, interleaved)


def rope_with_another_angle(q, k, positions, cos, sin, interleaved=False):
    angle = torch.atan2(sin, cos) + 1e-3
    return right_rope(q, k, positions, angle.cos(), angle.sin(), interleaved)


def rope_without_the_last_pair(q, k, positions, cos, sin, interleaved=False):
    cos, sin = cos.clone(), sin.clone()
    cos[:, -1], sin[:, -1] = 1, 0
    return right_rope(q, k, positions, cos, sin, interleaved)


OPS = replace(REFERENCE, name="mine", rope=right_rope)
FASTER = replace(backends.load("cpu"), name="mine-on-cpu", rope=right_rope)
ANGLE = replace(REFERENCE, name="angle", rope=rope_with_another_angle)
LAST_PAIR = replace(REFERENCE, name="last-pair", rope=rope_without_the_last_pair)
NAMELESS = replace(REFERENCE, rope=right_rope)
rope = right_rope
"""
ALONE = ("--threads", "1", "--dtype", "float32")


@pytest.fixture
def package(tmp_path, monkeypatch):
    """The name of a package of which this process has never heard, in the current folder and nowhere else."""
    name = f"turning_{abs(hash(tmp_path))}"
    (tmp_path / name).mkdir()
    (tmp_path / name / "__init__.py").touch()
    (tmp_path / name / "kernels.py").write_text(PACKAGE)
    monkeypatch.setattr(sys, "path", sys.path.copy())
    monkeypatch.chdir(tmp_path)
    return f"{name}.kernels"


@pytest.fixture
def quick(monkeypatch):
    before = torch.get_num_threads()
    peaks = Peaks(2e10, 3e10, {"float32": 1e11})
    monkeypatch.setattr("octavo.bench.run.measure_peaks", lambda device, dtypes: peaks)
    monkeypatch.setattr("octavo.bench.ops.SECONDS", {"cpu": 0.0, "cuda": 0.0})
    yield
    torch.set_num_threads(before)


def test_a_right_op_passes_and_is_counted(package):
    assert testing.check(backends.load(f"{package}:OPS")) == len(testing.cases("rope"))


@pytest.mark.parametrize("name", ["ANGLE", "LAST_PAIR"])
def test_a_subtly_wrong_op_is_refused_with_the_size_of_its_error(name, package):
    with pytest.raises(AssertionError, match=r"^backend '.*': rope, \(1, 1, 8\), .*: error \S+ over the budget \S+$"):
        testing.check(backends.load(f"{package}:{name}"))


def test_a_model_runs_on_it(package, tmp_path):
    path = checkpoint(tmp_path / "model", "llama")
    params = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)
    ours, theirs = (
        LLM(path, backend=name, dtype="float32", max_model_len=64).generate([[1, 2, 3]], params)
        for name in (f"{package}:OPS", "reference")
    )
    assert ours[0].outputs[0].token_ids == theirs[0].outputs[0].token_ids


def test_bench_times_what_is_right_and_refuses_what_is_not(package, quick, tmp_path, capsys):
    model, out = checkpoint(tmp_path / "model", "llama"), tmp_path / "out"
    wanted = ",".join(f"{package}:{name}" for name in ("OPS", "ANGLE", "LAST_PAIR"))
    sizes = ("--batch", "2", "--context", "20", "--prefill", "17", "--only", "rope")
    assert bench("ops", "--model", model, "--backend", wanted, *ALONE, *sizes, "--output", out) == 0
    cells = records.read(out).cells
    assert {cell.backend for cell in cells} == {"mine", "angle", "last-pair"}
    for cell in cells:
        if cell.backend == "mine":
            assert cell.passed
            assert len(cell.samples) >= 5
        else:
            assert cell.verdict == "wrong"
            assert cell.detail.startswith("error ")
            assert not cell.samples
    assert "mine" in capsys.readouterr().out
    assert bench("compare", out, out) == 0
    assert "mine float32 rope" in capsys.readouterr().out


def test_bench_decodes_with_it(package, quick, tmp_path, capsys):
    model, out = checkpoint(tmp_path / "model", "llama"), tmp_path / "out"
    sizes = ("--batch", "1", "--context", "16", "--new-tokens", "4", "--quick")
    wanted = f"{package}:OPS,{package}:ANGLE"
    assert bench("decode", "--model", model, "--backend", wanted, *ALONE, *sizes, "--output", out) == 0
    verdicts = {cell.contender: cell.verdict for cell in records.read(out).cells}
    assert verdicts.keys() == {"octavo:mine", "octavo:angle"}
    assert verdicts["octavo:mine"] in ("same", "rounding")
    assert bench("compare", out, out) == 0
    assert "octavo:mine" in capsys.readouterr().out


def test_a_name_of_ours_does_not_hide_whose_backend_it_is(package):
    assert backend(f"{package}:OPS").name == "mine"
    assert backend(f"{package}:OPS-sample").name == "mine-sample"
    assert backend(f"{package}:NAMELESS").name == f"{package}:NAMELESS"


def test_two_backends_of_one_name_cannot_be_told_apart(package, quick, tmp_path, capsys):
    (tmp_path / "twin.py").write_text(f"from {package} import OPS\n")
    assert bench("ops", "--backend", f"{package}:OPS,twin:OPS", "--output", tmp_path / "out") == 2
    assert "two backends have the name 'mine'" in capsys.readouterr().err


BAD = {
    "no:OPS": "backend 'no:OPS': no module 'no' on sys.path",
    "{package}.deeper:OPS": "no module '{package}.deeper'",
    "{package}:NONE": "{package} has no NONE; its backends: REFERENCE, OPS, FASTER, ANGLE, LAST_PAIR, NAMELESS",
    "{package}:rope": "must be an octavo.kernels.ops.Ops, not of type function",
    ":OPS": "backend must be package.module:NAME, not ':OPS'",
    "{package}:": "backend must be package.module:NAME, not '{package}:'",
    "../{package}:OPS": "backend must be package.module:NAME",
    "needy:OPS": "needy needs the module 'no_such_thing', which is not there",
    "broken:OPS": "importing broken raised RuntimeError: no device at all",
}


@pytest.mark.parametrize("name", BAD)
@pytest.mark.parametrize("door", ["LLM", "octavo", "bench"])
def test_a_wrong_path_is_one_clear_line(door, name, package, tmp_path, capsys):
    (tmp_path / "needy.py").write_text("import no_such_thing\n")
    (tmp_path / "broken.py").write_text("raise RuntimeError('no device\\nat all')\n")
    name, message = name.format(package=package), BAD[name].format(package=package)
    if door == "LLM":
        with pytest.raises(ValueError) as refusal:  # noqa: PT011
            LLM("dummy:smollm2", backend=name)
        lines = str(refusal.value).splitlines()
    else:
        arguments = ("generate", "Hi", "--model", "dummy:smollm2", "--backend", name)
        code = (
            main(list(arguments)) if door == "octavo" else bench("ops", "--backend", name, "--output", tmp_path / "o")
        )
        assert code == 2
        lines = capsys.readouterr().err.splitlines()
    (line,) = lines
    assert message in line


def test_the_command_finds_it_in_the_current_folder(package, tmp_path):
    model = checkpoint(tmp_path / "model", "llama")
    code = f"from octavo.gpt import LLM; print(LLM({str(model)!r}, backend={package + ':FASTER'!r}).backend)"
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], capture_output=True, text=True, env=os.environ | {"PYTHONPATH": ""}
    )
    assert (done.returncode, done.stdout) == (0, "mine-on-cpu\n"), done.stderr


def numpy_op(name, calls):
    """The reference's op with its body in NumPy's memory: nothing of it is seen by what captures a step."""
    in_place = {"write_kv": (2, 3)}.get(name, ())

    def outside(value):
        return torch.from_numpy(value.numpy().copy()) if isinstance(value, torch.Tensor) else value

    def call(*arguments):
        calls.append(name)
        own = [outside(argument) for argument in arguments]
        results = getattr(REFERENCE, name)(*own)
        for i in in_place:
            arguments[i].numpy()[...] = own[i].numpy()
        if isinstance(results, torch.Tensor):
            return outside(results)
        return results and tuple(map(outside, results))

    return call


OF_LAYERS = {
    "gpt2": ["layer_norm", "add_layer_norm", "linear", "write_kv", "paged_attention"],
    "smollm2": ["rms_norm", "add_rms_norm", "linear", "rope", "silu_mul", "write_kv", "paged_attention"],
}


@pytest.mark.parametrize(("model", "op"), [(model, op) for model, ops in OF_LAYERS.items() for op in ops])
def test_an_op_in_numpy_is_called_in_every_step(model, op, tmp_path):
    """The cpu backend replays what a step called, and would replay the first step's numbers."""
    path = checkpoint(tmp_path / model, {"smollm2": "llama"}.get(model, model))
    calls: list[str] = []
    cpu = backends.load("cpu")
    pack = {"pack": REFERENCE.pack} if op == "linear" else {}
    mine = replace(cpu, name="numpy", **{op: numpy_op(op, calls)}, **pack)
    params = SamplingParams(temperature=0, max_tokens=14, ignore_eos=True)
    prompts = [[1, 2, 3, 4, 5], [7], [9, 8]]
    llm = LLM(path, backend=mine, dtype="float32", max_model_len=40, block_size=4)
    ours = [request.outputs[0].token_ids for request in llm.generate(prompts, params)]
    assert len(calls) >= 14
    expected = LLM(path, backend="reference", dtype="float32", max_model_len=40, block_size=4).generate(prompts, params)
    assert ours == [request.outputs[0].token_ids for request in expected]

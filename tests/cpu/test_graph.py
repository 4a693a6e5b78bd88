"""A CPU graph does again what was recorded, with whatever lies in the buffers then; decode steps are such graphs."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from octavo.gpt.runner.decode_graph import MAX_CAPTURED_ROWS
from octavo.gpt.sampling_params import SamplingParams
from octavo.kernels.backends import graph_capture, load
from octavo.kernels.cpu import norm
from octavo.kernels.cpu.graph import capture
from octavo.kernels.ops import REFERENCE

from tiny import TINY, run, tiny_engine, tiny_model

WEIGHT = torch.rand(16)
MATRIX = torch.rand(16, 16)


def everything(x: torch.Tensor) -> torch.Tensor:
    """Loops, views, operators with one result and with several, in place and into given memory."""
    y, total = norm.add_rms_norm(x, x.flip(0), WEIGHT, 1e-5)
    y = F.linear(y, MATRIX, WEIGHT)
    y += total
    left, right = y.view(2, -1, 8).unbind(0)
    largest, where = torch.stack((left, right)).max(dim=-1, keepdim=True)
    y = y * largest.flatten().sum() + where.sum()
    out = torch.empty_like(y)
    torch.clamp(norm.rms_norm(y.contiguous(), WEIGHT, 1e-5), max=1.5, out=out)
    return torch.cat((out[:, :3], torch.zeros(len(out), 2)), 1)


@torch.inference_mode()
def test_a_recording_follows_its_input():
    x = torch.randn(4, 16)
    replay = capture(lambda: everything(x))
    for _ in range(5):
        x.copy_(torch.randn(4, 16))
        junk = [torch.full((4, 16), torch.nan) for _ in range(50)]  # takes whatever memory was given back
        assert torch.equal(replay(), everything(x))
        del junk


@torch.inference_mode()
def test_what_looks_at_values_is_refused():
    x = torch.ones(3)
    with pytest.raises(RuntimeError, match="reads the values of a tensor"):
        capture(lambda: x + x.sum().item())


def model_on(family: str, dtype: torch.dtype | None):
    ops = load("cpu")
    model = tiny_model(TINY[family], ops).to(dtype or torch.bfloat16)
    model.make_buffers()
    model.pack("q8_0" if dtype is None else None)
    return model


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, None], ids=["float32", "bfloat16", "q8_0"])
@pytest.mark.parametrize("family", TINY)
def test_recorded_steps_are_the_steps(family, dtype, monkeypatch):
    """Requests come and go, so every number of rows up to one more than is recorded is met, with other neighbours."""
    model = model_on(family, dtype)
    prompts = [[7 * i % 97 + 1] * (i % 5 + 1) for i in range(MAX_CAPTURED_ROWS + 1)]
    params = [SamplingParams(temperature=0, max_tokens=3 + 2 * i, ignore_eos=True) for i in range(len(prompts))]
    recorded = run(tiny_engine(model), prompts, params)
    monkeypatch.setattr("octavo.gpt.runner.model_runner.graph_capture", lambda ops: None)
    assert recorded == run(tiny_engine(model), prompts, params)


def test_steps_are_recorded_once_for_each_number_of_rows():
    engine = tiny_engine(model_on("llama", torch.float32))
    step = engine.runner.step
    for _ in range(2):
        run(engine, [[1, 2], [3], [4, 5, 6]], [SamplingParams(max_tokens=n, ignore_eos=True) for n in (3, 6, 9)])
        assert sorted(step._replays) == [1, 2, 3]


@pytest.mark.parametrize("name", ["write_kv", "paged_attention"])
def test_a_backend_whose_ops_look_at_values_is_not_recorded(name):
    ours = load("cpu")
    assert graph_capture(ours) is ours.capture
    assert graph_capture(replace(ours, **{name: getattr(REFERENCE, name)})) is None
    assert graph_capture(REFERENCE) is None

"""The launch table names every GPU it is asked for, and has a config for each."""

from itertools import combinations

import pytest
import torch

from octavo.kernels.testing.inputs import DEVICE
from octavo.kernels.triton import launch


@pytest.mark.parametrize(
    ("capability", "arch"),
    [
        ((8, 0), "sm_80"),
        ((8, 9), "sm_80"),
        ((9, 0), "sm_90"),
        ((10, 0), "sm_100"),
        ((10, 3), "sm_100"),
        ((12, 0), "sm_80"),
    ],
    ids=str,
)
def test_a_gpu_runs_the_configs_of_its_kind(capability, arch, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert launch.arch_of.__wrapped__(torch.device("cuda", 0)) == arch


def test_an_old_gpu_is_refused_by_name(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 5))
    with pytest.raises(ValueError, match=r"^device cuda:0 has compute capability 7\.5"):
        launch.arch_of.__wrapped__(torch.device("cuda", 0))


def test_amd_and_the_interpreter(monkeypatch):
    assert launch.arch_of(torch.device("cpu")) == "interpreter"
    monkeypatch.setattr(torch.version, "hip", "6.2")
    assert launch.arch_of.__wrapped__(torch.device("cuda", 0)) == "gfx942"


@pytest.mark.parametrize("arch", [*launch.ARCHS, "interpreter"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_every_arch_has_a_config_for_any_width(arch, dtype, monkeypatch):
    monkeypatch.setattr(launch, "arch_of", lambda device: arch)
    for width in (1, 7, 50, 576, 768, 1600, 16384, 32768):
        assert launch.norm(DEVICE, width)["TILE"] >= width
        assert launch.elementwise(DEVICE, width)["num_warps"] >= 1
        assert launch.rope(DEVICE, width, 128)["TILE_HALF"] == 128
        configs = [launch.linear(DEVICE, dtype, num_tokens, width) for num_tokens in (1, 16, 64, 65, 1000, 10**6)]
        assert len({config["BLOCK_K"] for config in configs}) == 1


def test_the_widest_norm_keeps_within_1024_threads(monkeypatch):
    for arch, lanes in (("sm_90", 32), ("gfx942", 64)):
        monkeypatch.setattr(launch, "arch_of", lambda device, arch=arch: arch)
        assert launch.norm(DEVICE, launch.NORM_MAX_DIM)["num_warps"] * lanes == 1024


def objects(table):
    """The ids of everything mutable in a part of the table, and of the tuples that hold it."""
    if isinstance(table, launch.LinearConfigs):
        return {id(table)}.union(*map(objects, (table.decode_narrow, table.decode, table.prefill)))
    if isinstance(table, dict | tuple):
        return {id(table)}.union(*map(objects, table.values() if isinstance(table, dict) else table))
    return set()


@pytest.mark.parametrize(
    "table", [launch.LINEAR, launch.ATTENTION, launch.PAGED_DECODE], ids=["linear", "attention", "decode"]
)
def test_no_two_archs_share_a_config(table):
    """So what is tuned on one GPU changes no other."""
    assert {arch for arch, _ in table} == {*launch.ARCHS, "interpreter"}
    for one, other in combinations(table, 2):
        assert objects(table[one]).isdisjoint(objects(table[other])), f"{one} and {other}"


@pytest.mark.parametrize(("size", "power"), [(1, 1), (2, 2), (3, 4), (768, 1024), (1024, 1024), (1025, 2048)])
def test_power_of_two(size, power):
    assert launch.power_of_two(size) == power

"""Kernels of a CPU graph that follow each other are one parallel region: the same bits on any team, in any company."""

import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
import torch

from octavo.kernels.cpu import norm, numba_kernel
from octavo.kernels.cpu.graph import capture
from octavo.kernels.cpu.linear import linear, pack
from octavo.kernels.weights import Weight

WIDTH, LAYERS = 256, 8
SCALE = torch.rand(WIDTH) + 0.5


def weights(seed: int, count: int = LAYERS) -> list[Weight]:
    generator = torch.Generator().manual_seed(seed)
    return [pack(torch.randn(WIDTH, WIDTH, generator=generator)) for _ in range(count)]


def layers(x: torch.Tensor, stack: list[Weight]) -> torch.Tensor:
    """Each product needs all that every thread computed of the one before; the norms are too small for two threads."""
    for weight in stack:
        x = norm.rms_norm(linear(x, weight), SCALE, 1e-5)
    return x


@contextmanager
def team(size: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(size)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def recorded(
    seed: int, count: int = LAYERS
) -> tuple[torch.Tensor, Callable[[], torch.Tensor], Callable[[], torch.Tensor]]:
    """An input, and what replays and what computes the layers of it."""
    x, stack = torch.randn(2, WIDTH), weights(seed, count)
    return x, capture(lambda: layers(x, stack)), lambda: layers(x, stack)


@torch.inference_mode()
@pytest.mark.parametrize("size", [1, 2, 3])
def test_the_bits_are_those_of_the_kernels_one_by_one(size):
    with team(size):
        x, replay, _ = recorded(0)
    stack = weights(0)
    for _ in range(20):
        x.normal_()
        assert torch.equal(replay(), layers(x, stack))


@torch.inference_mode()
def test_a_thousand_replays_agree_and_more_threads_than_cores_do_not_stall():
    for size, most in ((2, 1000), (3, 50)):
        with team(size):
            _, replay, eager = recorded(1, 2)
        wanted, start = eager(), time.monotonic()
        assert all(torch.equal(replay(), wanted) for _ in range(most))
        assert time.monotonic() - start < 60


def test_graphs_in_two_threads_at_once():
    def work(seed: int) -> bool:
        with torch.inference_mode():
            torch.set_num_threads(2)  # counts for this thread
            _, replay, eager = recorded(seed)
            wanted = eager()
            return all(torch.equal(replay(), wanted) for _ in range(200))

    with ThreadPoolExecutor(2) as pool:
        assert all(pool.map(work, (2, 3)))


@torch.inference_mode()
def test_kernels_in_a_row_start_once(monkeypatch):
    starts, start = [], numba_kernel._start
    x, replay, eager = recorded(4)
    mixed = capture(lambda: layers(layers(x, weights(4)[:1]) + 1, weights(4)[1:]))
    monkeypatch.setattr(numba_kernel, "_start", lambda *call: starts.append(call) or start(*call))
    for run, wanted in ((replay, 1), (mixed, 2), (eager, 2 * LAYERS)):
        starts.clear()
        run()
        assert len(starts) == wanted


@torch.inference_mode()
def test_nothing_and_one_kernel():
    x = torch.randn(3, WIDTH)
    nothing, one = capture(lambda: x), capture(lambda: norm.rms_norm(x, SCALE, 1e-5))
    x.normal_()
    assert nothing() is x
    assert torch.equal(one(), norm.rms_norm(x, SCALE, 1e-5))


@torch.inference_mode()
def test_a_graph_keeps_what_its_kernels_read():
    replay = recorded(6)[1]
    wanted = replay().clone()
    junk = [torch.full((2, WIDTH), torch.nan) for _ in range(50)]  # takes whatever memory was given back
    junk += [torch.full((WIDTH, WIDTH), torch.nan) for _ in range(LAYERS)]
    assert torch.equal(replay(), wanted)
    del junk


@torch.inference_mode()
def test_an_interrupt_leaves_a_graph_that_replays():
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    def replay_for_ever() -> None:
        while True:
            replay()

    with team(2):
        _, replay, eager = recorded(5)
    wanted, before = eager(), signal.signal(signal.SIGALRM, interrupt)
    try:
        for wait in range(1, 21):
            signal.setitimer(signal.ITIMER_REAL, wait / 5000)
            with pytest.raises(KeyboardInterrupt):
                replay_for_ever()
            assert torch.equal(replay(), wanted)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)

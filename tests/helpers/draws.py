"""Draws by the thousand: programs of the sampling kernels wide enough for the interpreter, and whether the draws come
from a distribution. Each of the latter functions returns a p-value; small means no.
"""

import math

import pytest
import torch
from torch import Tensor

from octavo.kernels.testing.inputs import DEVICE
from octavo.kernels.triton import launch
from octavo.kernels.triton.launch import power_of_two


def set_programs(
    monkeypatch: pytest.MonkeyPatch,
    rows: int | None = None,
    tile: int | None = None,
    group: int | None = None,
    chunk: int | None = None,
) -> None:
    """Launch the kernels of `sample` and `top_logprobs` with these sizes instead of the table's."""
    scan, choose = launch.scan, launch.choose

    def changed(config: launch.Config, **sizes: int | None) -> launch.Config:
        return {**config, **{name: size for name, size in sizes.items() if size}}

    monkeypatch.setattr(launch, "scan", lambda d, v: changed(scan(d, v), ROWS=rows, TILE=tile, GROUP=group))
    monkeypatch.setattr(launch, "choose", lambda d, v: changed(choose(d, v), CHUNK=chunk))


def wide_programs(monkeypatch: pytest.MonkeyPatch, vocab_size: int, lanes: int = 2**17) -> None:
    """As many rows a program as make the interpreter's steps worth their price; on a GPU, the table's own."""
    if DEVICE.type == "cpu":
        width = max(32, power_of_two(vocab_size))
        set_programs(monkeypatch, rows=max(1, lanes // width), tile=width, chunk=width)


LEAST_EXPECTED = 5.0  # cells that expect fewer are pooled


def fit(counts: Tensor, probabilities: Tensor) -> float:
    """Pearson's chi-square of counts `[cells]`, the rare cells pooled; 0 if an impossible cell was hit."""
    expected = probabilities.double() * counts.sum()
    if bool((counts[expected == 0] > 0).any()):
        return 0.0
    common = expected >= LEAST_EXPECTED
    pairs = torch.stack([counts.double(), expected])
    cells, rare = pairs[:, common], pairs[:, ~common].sum(1, keepdim=True)
    if rare[1] >= LEAST_EXPECTED:
        cells = torch.cat([cells, rare], 1)
    elif rare[1] > 0:
        cells[:, cells[1].argmin()] += rare[:, 0]
    return _chi_square((cells[0] - cells[1]).square().div(cells[1]).sum(), cells.shape[1] - 1)


def independence(first: Tensor, second: Tensor, cells: int) -> float:
    """Chi-square of the contingency table of pairs of ids below `cells`, every one of which is common."""
    table = torch.bincount(first.long() * cells + second.long(), minlength=cells * cells).view(cells, cells).double()
    expected = table.sum(1, keepdim=True) * table.sum(0, keepdim=True) / table.sum()
    assert expected.min() >= LEAST_EXPECTED
    return _chi_square((table - expected).square().div(expected).sum(), (cells - 1) ** 2)


def uniformity(values: Tensor) -> float:
    """Kolmogorov and Smirnov's test of values in [0, 1], with the limit distribution."""
    ordered, n = values.double().flatten().sort().values, values.numel()
    steps = torch.arange(n + 1, dtype=torch.float64) / n
    distance = torch.maximum(ordered - steps[:-1], steps[1:] - ordered).max().item()
    root = distance * math.sqrt(n)
    series = sum((-1) ** (j - 1) * math.exp(-2 * (j * root) ** 2) for j in range(1, 101))
    return min(1.0, 2 * series)


def _chi_square(statistic: Tensor, freedom: int) -> float:
    return torch.special.gammaincc(torch.tensor(freedom / 2, dtype=torch.float64), statistic / 2).item()

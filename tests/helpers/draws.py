"""Programs of the sampling kernels wide enough for the interpreter to draw thousands of rows."""

import pytest

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

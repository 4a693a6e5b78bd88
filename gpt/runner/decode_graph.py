"""DecodeStep: one token for each row of the input batch, read from buffers that never move and written back to them.

On CUDA a step is captured once for each size and `SampleMode` as a graph and then replayed: one launch from the host in
place of hundreds. Numbers of rows between two sizes are padded by data, so a captured step computes what the eager one
does. On a CPU the layers are captured for each small number of rows, and replayed without the model's Python.
"""

import time
from bisect import bisect_left
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from octavo.gpt.models.base import Model
from octavo.gpt.runner.input_batch import InputBatch
from octavo.gpt.runner.kv_cache import PagedCache
from octavo.gpt.runner.sampler import SampleMode, Sampler

MAX_CAPTURED_ROWS = 8  # larger batches gain little from a replay, and a capture keeps every intermediate alive

Step = Callable[[], Tensor]
Capture = Callable[[Step], Step]  # from a step to one that repeats it on the same buffers


class DecodeStep:
    """The eager step: forward, then the part of sampling that the device does alone.

    capture_layers: from the layers of a step to a function that replays them; None runs them each time.
    """

    def __init__(
        self,
        model: Model,
        cache: PagedCache,
        input_batch: InputBatch,
        sampler: Sampler,
        capture_layers: Capture | None = None,
    ) -> None:
        self.model = model
        self.cache = cache
        self.input_batch = input_batch
        self.sampler = sampler
        self.capture_layers = capture_layers
        self._replays: dict[int, Step] = {}

    def run(self, size: int, mode: SampleMode) -> Tensor:
        """Return token ids `[size]` int32, or in mode LOGITS logits `[size, vocab_size]` for `Sampler.finish`."""
        return self.sampler.start(self._hidden(size), self.input_batch.columns(size), mode)

    def run_with(self, model: Model, size: int, mode: SampleMode) -> Tensor:
        """Return what `run` does, computed by a model made for this step alone, which no capture holds."""
        hidden = model(self.input_batch.batch(size), self.cache.layers)
        return self.sampler.start(hidden, self.input_batch.columns(size), mode)

    def forget(self) -> None:
        """Drop what was captured: the weights are others now."""
        self._replays.clear()

    def _hidden(self, size: int) -> Tensor:
        """Return the hidden states of the first `size` rows, valid until the next step of that size."""
        if self.capture_layers is None or size > MAX_CAPTURED_ROWS:
            return self._forward(size)
        if size not in self._replays:
            self._replays[size] = self.capture_layers(partial(self._forward, size))
        return self._replays[size]()

    def _forward(self, size: int) -> Tensor:
        return self.model(self.input_batch.batch(size), self.cache.layers)


class Graphs:
    """The step for numbers of rows up to `max_num_seqs`, rounded up to the sizes that were captured."""

    def __init__(self, step: DecodeStep, capture: Capture, max_num_seqs: int) -> None:
        self.step = step
        self.capture = capture
        self.sizes = capture_sizes(max_num_seqs)
        self._replays: dict[tuple[int, SampleMode], Step] = {}
        self._seconds = 0.0
        self._num_bytes = 0

    @property
    def cost(self) -> tuple[int, float, int]:
        """Steps captured, and the seconds and the bytes of device memory that it took."""
        return len(self._replays), self._seconds, self._num_bytes

    def replay(self, num_rows: int, mode: SampleMode) -> Tensor:
        """Return what `DecodeStep.run` does; a size that is needed for the first time is captured."""
        size = self.sizes[bisect_left(self.sizes, num_rows)]
        if (size, mode) not in self._replays:
            self._add(size, mode)
        return self._replays[size, mode]()[:num_rows]

    def forget(self) -> None:
        """Drop what was captured: the weights are others now."""
        self._replays.clear()

    def capture_all(self) -> None:
        """Capture every size now, the largest first, so that the smaller ones find memory to share."""
        for size in reversed(self.sizes):
            for mode in SampleMode:
                self._add(size, mode)

    def _add(self, size: int, mode: SampleMode) -> None:
        newest = self.step.input_batch.token_ids
        start, before, saved = time.perf_counter(), self._free_bytes(), newest.clone()
        self._replays[size, mode] = self.capture(partial(self.step.run, size, mode))
        newest.copy_(saved)  # the warm-up of the capture sampled over them
        self._num_bytes += before - self._free_bytes()
        self._seconds += time.perf_counter() - start

    def _free_bytes(self) -> int:
        device = self.step.input_batch.token_ids.device
        return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 0


def capture_sizes(max_num_seqs: int) -> list[int]:
    """1, 2, 4, 8, then a step of 8 up to 64, of 16 up to 256, of 64 beyond: at most a seventh of a step is padding."""
    sizes = [1, 2, 4, *range(8, 64, 8), *range(64, 256, 16), *range(256, max_num_seqs + 64, 64)]
    return [size for size in sizes if size < max_num_seqs] + [max_num_seqs]


def cuda_capture() -> Capture:
    """Capture as CUDA graphs that share one pool of memory; a step's result is valid until the next replay."""
    pool = torch.cuda.graph_pool_handle()

    def capture(step: Step) -> Step:
        warm_up = torch.cuda.Stream()
        warm_up.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(warm_up):
            step()  # compiles the kernels that were never compiled
        torch.cuda.current_stream().wait_stream(warm_up)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=pool):
            result = step()

        def replay() -> Tensor:
            graph.replay()
            return result

        return replay

    return capture

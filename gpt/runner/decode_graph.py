"""DecodeStep: one token for each row, read from buffers that never move and written back to them.

On CUDA a step is captured once for each size and ending as a graph and then replayed: one launch from the host in place
of hundreds. Between sizes the rows are padded by data, so a captured step is the eager one with other numbers. On a CPU
the layers are recorded for each small number of rows and then repeated without the model's Python.
"""

import time
from bisect import bisect_left
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from octavo.gpt.models.base import Model
from octavo.gpt.runner.input_batch import DRAW, LOGITS, SAMPLE, Rows
from octavo.gpt.runner.kv_cache import PagedCache

RECORDED_ROWS = 8  # beyond, Python is little beside the arithmetic, and a recording keeps all that lies between the ops

Step = Callable[[], Tensor]
Capture = Callable[[Step], Step]  # from a step to one that repeats it on the same buffers


class DecodeStep:
    """The step as it is: `(size, ending) -> token_ids [size]`, or logits `[size, vocab_size]` for the sampler.

    record: from the layers of a step to what repeats them; None runs them each time.
    """

    def __init__(self, model: Model, cache: PagedCache, rows: Rows, record: Capture | None = None) -> None:
        self.model = model
        self.cache = cache
        self.rows = rows
        self.record = record
        self._recorded: dict[int, Step] = {}

    def __call__(self, size: int, ending: int) -> Tensor:
        return self.finish(self._hidden(size), 0, size, ending)

    def _hidden(self, size: int) -> Tensor:
        """The hidden states of the first `size` rows, which hold until the next step of that size."""
        if self.record is None or size > RECORDED_ROWS:
            return self._forward(size)
        if size not in self._recorded:
            self._recorded[size] = self.record(partial(self._forward, size))
        return self._recorded[size]()

    def _forward(self, size: int) -> Tensor:
        return self.model(self.rows.batch(size), self.cache.layers)

    def finish(self, hidden: Tensor, first: int, last: int, ending: int) -> Tensor:
        """From these rows' hidden states to their tokens, or to logits where the sampler has to go on."""
        if ending == LOGITS:
            return self.model.logits(hidden)
        temperature, *filters, seeds, positions = self.rows.sampling(first, last)
        if ending == DRAW:
            token_ids = self.model.draw(hidden, temperature, seeds, positions)
        else:
            token_ids, _ = self.model.ops.sample(self.model.logits(hidden), temperature, *filters, seeds, positions)
        self.keep(token_ids, first, last)
        return token_ids

    def keep(self, token_ids: Tensor, first: int, last: int) -> None:
        """Let the next step begin with these; one that says "not numbers" becomes an id that can be looked up."""
        torch.clamp(token_ids, min=0, out=self.rows.token_ids[first:last])


class Graphs:
    """The step for numbers of rows up to `max_num_seqs`, rounded up to the sizes that were captured."""

    def __init__(self, step: DecodeStep, capture: Capture, max_num_seqs: int) -> None:
        self.step = step
        self.capture = capture
        self.sizes = capture_sizes(max_num_seqs)
        self._steps: dict[tuple[int, int], Step] = {}
        self._seconds = 0.0
        self._num_bytes = 0

    @property
    def cost(self) -> tuple[int, float, int]:
        """Steps captured, the seconds and the bytes of device memory that took."""
        return len(self._steps), self._seconds, self._num_bytes

    def __call__(self, num_rows: int, ending: int) -> Tensor:
        size = self.sizes[bisect_left(self.sizes, num_rows)]
        if (size, ending) not in self._steps:
            self._add(size, ending)
        return self._steps[size, ending]()[:num_rows]

    def capture_all(self) -> None:
        """Capture every size now, the largest first: the smaller ones then find memory to share."""
        for size in reversed(self.sizes):
            for ending in (DRAW, SAMPLE, LOGITS):
                self._add(size, ending)

    def _add(self, size: int, ending: int) -> None:
        start, before, token_ids = time.perf_counter(), self._free_bytes(), self.step.rows.token_ids.clone()
        self._steps[size, ending] = self.capture(partial(self.step, size, ending))
        self.step.rows.token_ids.copy_(token_ids)  # the warm-up drew from them
        self._num_bytes += before - self._free_bytes()
        self._seconds += time.perf_counter() - start

    def _free_bytes(self) -> int:
        device = self.step.rows.token_ids.device
        return torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else 0


def capture_sizes(max_num_seqs: int) -> list[int]:
    """1, 2, 4, 8, then a step of 8 up to 64, of 16 up to 256, of 64 beyond: at most a seventh of a step is padding."""
    sizes = [1, 2, 4, *range(8, 64, 8), *range(64, 256, 16), *range(256, max_num_seqs + 64, 64)]
    return [size for size in sizes if size < max_num_seqs] + [max_num_seqs]


def cuda_capture() -> Capture:
    """Capture as CUDA graphs that share one pool of memory; a step's result holds until the next replay."""
    pool = torch.cuda.graph_pool_handle()

    def capture(step: Step) -> Step:
        warm_up = torch.cuda.Stream()
        warm_up.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(warm_up):
            step()  # compiles what was never compiled
        torch.cuda.current_stream().wait_stream(warm_up)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=pool):
            result = step()

        def replay() -> Tensor:
            graph.replay()
            return result

        return replay

    return capture

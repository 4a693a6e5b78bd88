"""llama.cpp by its batch interface, in llama-cpp-python's binding: several sequences in one `llama_decode`."""

import ctypes
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np
import torch

from octavo.bench.measuring.timing import Stopwatch
from octavo.bench.peers.base import Generation

ALL_LAYERS = -1
ROWS = 2048  # tokens of one call, llama.cpp's own default


@llama_cpp.llama_log_callback  # type: ignore[untyped-decorator, unused-ignore]
def _silent(level: int, text: bytes, data: Any) -> None:
    """llama.cpp's own report of what it loads would stand in the middle of a table."""


class LlamaContext:
    """A GGUF file in llama.cpp, with a cache for as many sequences as are asked for; ValueError where it cannot open.

    Cache, flash attention and size of a micro-batch are llama.cpp's defaults.
    """

    def __init__(self, path: Path, threads: int, max_context: int, on_gpu: bool) -> None:
        llama_cpp.llama_log_set(_silent, ctypes.c_void_p(0))
        llama_cpp.llama_backend_init()
        params = llama_cpp.llama_model_default_params()
        params.n_gpu_layers = ALL_LAYERS if on_gpu else 0
        self.model = llama_cpp.llama_model_load_from_file(str(path).encode(), params)
        if not self.model:
            raise ValueError(f"llama.cpp cannot open {path}")
        self.vocab_size = llama_cpp.llama_vocab_n_tokens(llama_cpp.llama_model_get_vocab(self.model))
        self.threads, self.max_context = threads, max_context
        self.context: Any = None
        self.room = 0, 0  # of the context: sequences, and logits of one call

    def generate(self, prompts: list[list[int]], new_tokens: int) -> Generation:
        """Exactly `new_tokens` greedy tokens for each prompt; all prompts are of one length."""
        num_seqs, length = len(prompts), len(prompts[0])
        self._make_room(num_seqs, num_seqs)
        sequences = np.arange(num_seqs)
        answers, watch = np.empty((num_seqs, new_tokens), np.int64), Stopwatch(torch.device("cpu"))
        watch.mark()
        answers[:, 0] = self._prefill(prompts)
        watch.mark()
        for i in range(1, new_tokens):
            batch = Rows(answers[:, i - 1], np.full(num_seqs, length + i - 1), sequences, np.ones(num_seqs))
            answers[:, i] = [self._logits(batch, row).argmax() for row in self._decode(batch)]
            watch.mark()
        first, *steps = watch.laps()
        return Generation(answers.tolist(), first, steps)

    def losses(self, ids: list[int]) -> np.ndarray:
        """Minus the logarithm of the probability of each id but the first, float64 `[len(ids) - 1]`."""
        tokens, found, size = np.array(ids), [], min(ROWS, self.max_context)
        self._make_room(1, size)
        for start in range(0, len(ids) - 1, size):
            rows = np.arange(start, min(start + size, len(ids) - 1))
            batch = Rows(tokens[rows], rows, np.zeros(len(rows)), np.ones(len(rows)))
            for row in self._decode(batch):
                logits = self._logits(batch, row).astype(np.float64)
                found.append(np.logaddexp.reduce(logits) - logits[tokens[rows[row] + 1]])
        return np.array(found)

    def close(self) -> None:
        self._free_context()
        llama_cpp.llama_model_free(self.model)

    def _prefill(self, prompts: Sequence[Sequence[int]]) -> list[int]:
        """The first greedy token of each prompt, all of them read in as few calls as llama.cpp's default allows."""
        num_seqs, length = len(prompts), len(prompts[0])
        tokens, positions = np.concatenate(prompts), np.tile(np.arange(length), num_seqs)
        sequences, firsts = np.repeat(np.arange(num_seqs), length), []
        for start in range(0, len(tokens), ROWS):
            part = slice(start, start + ROWS)
            batch = Rows(tokens[part], positions[part], sequences[part], positions[part] == length - 1)
            firsts += [int(self._logits(batch, row).argmax()) for row in self._decode(batch)]
        return firsts

    def _decode(self, batch: "Rows") -> np.ndarray:
        """Run the batch; return the rows whose logits can be read."""
        if code := llama_cpp.llama_decode(self.context, batch.struct):
            raise ValueError(f"llama_decode of {len(batch.tokens)} tokens failed with code {code}")
        return np.flatnonzero(batch.wanted)

    def _logits(self, batch: "Rows", row: int) -> np.ndarray:
        """Float32 `[vocab_size]`, valid until the next call of llama_decode."""
        return np.ctypeslib.as_array(llama_cpp.llama_get_logits_ith(self.context, int(row)), (self.vocab_size,))

    def _make_room(self, num_seqs: int, num_outputs: int) -> None:
        """An empty cache for that many sequences: of one alone as its users have it, whatever else the run measures."""
        if self.context and self.room == (num_seqs, num_outputs):
            llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self.context), False)
            return
        self._free_context()
        params = llama_cpp.llama_context_default_params()
        params.n_ctx, params.n_seq_max = num_seqs * self.max_context, num_seqs
        params.n_batch, params.n_outputs_max = ROWS, num_outputs
        params.n_threads = params.n_threads_batch = self.threads
        self.context, self.room = llama_cpp.llama_init_from_model(self.model, params), (num_seqs, num_outputs)
        if not self.context:
            raise ValueError(f"llama.cpp has no room for {num_seqs} sequences of {self.max_context} tokens")

    def _free_context(self) -> None:
        if self.context:
            llama_cpp.llama_free(self.context)
        self.context = None


class Rows:
    """Tokens of one call with their positions and sequences, in arrays that llama.cpp reads where they are."""

    def __init__(self, tokens: np.ndarray, positions: np.ndarray, sequences: np.ndarray, wanted: np.ndarray) -> None:
        self.tokens, self.positions, self.sequences = (
            np.ascontiguousarray(each, np.int32) for each in (tokens, positions, sequences)
        )
        self.wanted = np.ascontiguousarray(wanted, np.int8)
        self.ones = np.ones(len(self.tokens), np.int32)  # sequences of each row
        self.places = self.sequences.ctypes.data + self.sequences.itemsize * np.arange(
            len(self.tokens), dtype=np.uint64
        )
        self.struct = llama_cpp.llama_batch(len(self.tokens))
        arrays: dict[str, np.ndarray] = {
            "token": self.tokens, "pos": self.positions, "n_seq_id": self.ones, "seq_id": self.places,
            "logits": self.wanted,
        }  # fmt: skip
        kinds = dict(llama_cpp.llama_batch._fields_)
        for name, array in arrays.items():
            setattr(self.struct, name, array.ctypes.data_as(kinds[name]))

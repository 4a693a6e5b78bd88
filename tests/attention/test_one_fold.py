"""One token, one value: a query's row has the same bits from decode, from a chunk and from causal_attention."""

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from octavo.kernels.testing.inputs import DEVICE, cu_seqlens, fused_qkv, integers, paged
from octavo.kernels.triton import attention, paged_attention, paged_decode

CONTEXTS = [1, 17, 255, 256, 257, 600, 1024]
GROUPS = [1, 3, 8]  # query heads of a kv head
HEAD_DIMS = [24, 64, 80, 128]
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
SINKS = torch.tensor([0.5, -1.0, 3.0], device=DEVICE)
KINDS: dict[str, tuple[Any, ...]] = {
    "window": (300, 0.0, None),
    "short window": (7, 0.0, None),
    "softcap": (0, 1.5, None),
    "sinks": (0, 0.0, SINKS),
    "all": (300, 1.5, SINKS),
}
PLAIN: tuple[Any, ...] = (0, 0.0, None)


class Prompt:
    """Queries, keys and values of one sequence of a single kv head, and how they attend."""

    def __init__(
        self, context: int, group: int, head_dim: int, dtype: torch.dtype, kind: tuple[Any, ...] = PLAIN
    ) -> None:
        self.context, self.kind, self.scale = context, kind, head_dim**-0.5
        self.q, self.k, self.v = fused_qkv(context, (group, 1, head_dim), dtype)

    def whole(self) -> Tensor:
        """All rows at once, by causal_attention."""
        bounds = cu_seqlens([self.context])
        return attention.causal_attention(self.q, self.k, self.v, bounds, self.context, self.scale, *self.kind)

    def decoded(self, lengths: list[int]) -> Tensor:
        """The last rows of so many tokens, each a sequence of one decode step."""
        keys, values = (torch.cat([x[:length] for length in lengths]) for x in (self.k, self.v))
        queries = self.q[[length - 1 for length in lengths]]
        indices = integers(lengths), cu_seqlens([1] * len(lengths)), 1, self.scale
        caches = paged(keys, values, lengths, 16)
        return paged_attention.paged_attention(queries, *caches, *indices, *self.kind)

    def chunk(self, num_queries: int) -> Tensor:
        """The rows of the last tokens, as a chunk of prefill."""
        indices = integers([self.context]), cu_seqlens([num_queries]), max(2, num_queries), self.scale
        caches = paged(self.k, self.v, [self.context], 8, seed=self.context)
        return paged_attention.paged_attention(self.q[-num_queries:], *caches, *indices, *self.kind)

    def differences(self, whole: bool = True) -> list[str]:
        """Where the last token's row is not the bits of its decode step."""
        decoded = self.decoded([self.context])[0]
        rows = {"alone in a chunk": self.chunk(1), "in a chunk": self.chunk(min(19, self.context))}
        if whole:
            rows["of the whole prompt"] = self.whole()
        return [name for name, row in rows.items() if not torch.equal(decoded, row[-1])]


@pytest.mark.parametrize("context", CONTEXTS)
def test_decode_and_chunk_give_the_same_bits(context: int) -> None:
    number = CONTEXTS.index(context)
    prompt = Prompt(context, GROUPS[number % 3], HEAD_DIMS[number % 4], DTYPES[number % 3])
    assert prompt.differences(whole=False) == []


@pytest.mark.slow
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("context", "group", "head_dim"), itertools.product(CONTEXTS, GROUPS, HEAD_DIMS))
def test_so_they_and_a_whole_prompt_do_in_the_whole_grid(
    context: int, group: int, head_dim: int, dtype: torch.dtype
) -> None:
    assert Prompt(context, group, head_dim, dtype).differences() == []


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_so_they_do_with_windows_soft_caps_and_sinks(kind: tuple[Any, ...]) -> None:
    assert Prompt(600, 3, 24, torch.float16, kind).differences() == []


@pytest.mark.parametrize("kind", [PLAIN, (270, 1.5, SINKS[:1])], ids=["plain", "all kinds"])
def test_a_prompt_token_by_token(kind: tuple[Any, ...]) -> None:
    """Every row about the ends of pieces, decoded in one step, beside the prompt's own."""
    prompt, lengths = Prompt(530, 1, 24, torch.float16, kind), [1, 31, 255, 256, 257, 511, 512, 513, 530]
    assert torch.equal(prompt.decoded(lengths), prompt.whole()[[length - 1 for length in lengths]])


def test_a_decode_that_cuts_elsewhere_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    prompt = Prompt(600, 1, 24, torch.float32)
    assert prompt.differences(whole=False) == []
    monkeypatch.setattr(paged_decode, "SPLIT", 128)
    assert len(prompt.differences(whole=False)) == 2


class Backwards:
    """The merge of one sequence, given its pieces in reverse."""

    def __init__(self, merge: Any) -> None:
        self.merge = merge

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        def run(partial: Tensor, stats: Tensor, *args: Any, **constants: Any) -> None:
            self.merge[grid](partial.flip(0), stats.flip(0), *args, **constants)

        return run


def test_a_decode_that_folds_backwards_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same pieces in another order: the same sum but for its rounding."""
    prompt = Prompt(600, 1, 24, torch.float32)
    before = prompt.decoded([600])
    monkeypatch.setattr(paged_decode, "_merge_kernel", Backwards(paged_decode._merge_kernel))
    assert len(prompt.differences(whole=False)) == 2
    torch.testing.assert_close(prompt.decoded([600]), before)

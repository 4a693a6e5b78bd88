"""Windows, soft caps and sinks: the same bits alone and in company, whole and in chunks."""

import pytest
import torch

from octavo.kernels.testing.inputs import DEVICE, cu_seqlens, fused_qkv, integers, paged
from octavo.kernels.triton.attention import causal_attention
from octavo.kernels.triton.paged_attention import paged_attention

pytestmark = pytest.mark.usefixtures("guarded_memory")
SINKS = torch.tensor([0.5, -1.0], device=DEVICE)
KINDS = {
    "window": (20, 0.0, None),
    "window 1": (1, 0.0, None),
    "softcap": (0, 1.5, None),
    "sinks": (0, 0.0, SINKS),
    "all": (37, 1.5, SINKS),
}


@pytest.fixture(params=KINDS)
def kind(request):
    return KINDS[request.param]


def test_a_prompt_whole_and_in_chunks(kind):
    q, k, v = fused_qkv(90, (2, 1, 24), torch.float16)
    whole = causal_attention(q, k, v, cu_seqlens([90]), 90, 0.2, *kind)
    for start, end in ((0, 90), (1, 2), (30, 75), (74, 90)):
        k_cache, v_cache, table = paged(k[:end], v[:end], [end], 8, seed=end)
        if kind[0]:
            table[0, : max(0, start + 1 - kind[0]) // 8] = -1
        indices = (integers([end]), cu_seqlens([end - start]), max(2, end - start), 0.2)
        assert torch.equal(paged_attention(q[start:end], k_cache, v_cache, table, *indices, *kind), whole[start:end])


@pytest.mark.parametrize("queries", [[1, 1, 1, 1], [9, 1, 40, 2]], ids=["decode", "prefill"])
def test_a_sequence_alone_and_in_a_batch(kind, queries):
    contexts = [300, 1, 263, 40]
    _, k, v = fused_qkv(sum(contexts), (2, 1, 16), torch.float16)
    q, _, _ = fused_qkv(sum(queries), (2, 1, 16), torch.float16, seed=1)
    longest = 1 if max(queries) == 1 else 64
    indices = (integers(contexts), cu_seqlens(queries), longest, 0.25)
    together = paged_attention(q, *paged(k, v, contexts, 16), *indices, *kind).split(queries)
    for seq, (rows, keys, values) in enumerate(
        zip(q.split(queries), k.split(contexts), v.split(contexts), strict=True)
    ):
        caches_and_table = paged(keys, values, [contexts[seq]], 4, seed=3)
        indices = (integers([contexts[seq]]), cu_seqlens([queries[seq]]), longest, 0.25)
        assert torch.equal(paged_attention(rows, *caches_and_table, *indices, *kind), together[seq])


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ((-1, 0.0, None), "window must be 0 or more, not -1"),
        ((0, -2.0, None), "softcap must be 0 or positive, not -2.0"),
        ((0, 0.0, SINKS[:1]), "sinks must be float32"),
    ],
    ids=["window", "softcap", "sinks"],
)
def test_a_bad_kind_is_named(kind, message):
    q, k, v = fused_qkv(4, (2, 1, 16), torch.float32)
    with pytest.raises(ValueError, match=message):
        causal_attention(q, k, v, cu_seqlens([4]), 4, 0.25, *kind)

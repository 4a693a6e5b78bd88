"""apply_penalties: change logits in place by what each sequence has generated so far, then by a bias per id.

    logit / r or * r, whichever makes it less likely, if generated or in the prompt
    logit - frequency * count - presence * (count > 0)
    logit + bias

One program changes one tile of one row, if that row has a penalty at all; another kernel then adds the biases, an id a
lane. Both compute in float32 in the reference's order, without fused multiply-adds: for float32 logits the bits are the
reference's. The meaning is vLLM's; the repetition penalty is from https://arxiv.org/abs/1909.05858
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from octavo.kernels.triton import launch
from octavo.kernels.triton.checks import check_columns, check_logits, check_tensor


@triton.jit
def _penalties_kernel(
    logits_ptr,
    counts_ptr,
    in_prompt_ptr,
    repetition_ptr,
    presence_ptr,
    frequency_ptr,
    stride_logits,
    stride_counts,
    stride_in_prompt,
    VOCAB_SIZE: tl.constexpr,
    TILE: tl.constexpr,
):
    row, ids = tl.program_id(0).to(tl.int64), tl.program_id(1) * TILE + tl.arange(0, TILE)  # [TILE]
    repetition = tl.load(repetition_ptr + row)
    presence, frequency = tl.load(presence_ptr + row), tl.load(frequency_ptr + row)
    if (repetition != 1) | (presence != 0) | (frequency != 0):
        inside = ids < VOCAB_SIZE
        x = tl.load(logits_ptr + row * stride_logits + ids, inside, 0.0).to(tl.float32)
        count = tl.load(counts_ptr + row * stride_counts + ids, inside, 0)
        in_prompt = tl.load(in_prompt_ptr + row * stride_in_prompt + ids, inside, 0)
        factor = tl.where(x > 0, tl.div_rn(1.0, repetition), repetition)
        x *= tl.where((count > 0) | (in_prompt != 0), factor, 1.0)
        x -= frequency * count.to(tl.float32) + tl.where(count > 0, presence, 0.0)
        tl.store(logits_ptr + row * stride_logits + ids, x.to(logits_ptr.dtype.element_ty), inside)


@triton.jit(do_not_specialize=["max_bias", "vocab_size"])
def _bias_kernel(logits_ptr, bias_ids_ptr, bias_values_ptr, stride_logits, max_bias, vocab_size, TILE: tl.constexpr):
    row, entry = tl.program_id(0).to(tl.int64), tl.program_id(1) * TILE + tl.arange(0, TILE)  # [TILE]
    there = entry < max_bias
    token = tl.load(bias_ids_ptr + row * max_bias + entry, there, -1)
    value = tl.load(bias_values_ptr + row * max_bias + entry, there, 0.0)
    used = (token >= 0) & (token < vocab_size)
    pointers = logits_ptr + row * stride_logits + token
    x = tl.load(pointers, used, 0.0).to(tl.float32) + value
    tl.store(pointers, x.to(logits_ptr.dtype.element_ty), used)


def apply_penalties(
    logits: Tensor,
    counts: Tensor,
    in_prompt: Tensor,
    repetition_penalty: Tensor,
    presence_penalty: Tensor,
    frequency_penalty: Tensor,
    bias_ids: Tensor,
    bias_values: Tensor,
) -> None:
    """Change logits `[num_seqs, vocab_size]` in place by what each sequence has generated so far (vLLM's semantics).

    logits in float32, float16 or bfloat16; counts `[num_seqs, vocab_size]` int32, how often each id was generated;
    in_prompt `[num_seqs, vocab_size]` bool: all three may have strided rows. repetition_penalty r > 0 (1 off),
    presence_penalty and frequency_penalty (0 off) are `[num_seqs]` float32. bias_ids `[num_seqs, max_bias]` int32, -1
    unused, an id at most once a row, and bias_values float32 are added last. ValueError on a wrong shape, dtype, device
    or stride; values are not looked at, and a bias id beyond the vocabulary changes nothing.
    """
    rows = (repetition_penalty, presence_penalty, frequency_penalty)
    _check(logits, counts, in_prompt, rows, bias_ids, bias_values)
    (num_rows, vocab_size), max_bias = logits.shape, bias_ids.shape[1]
    if num_rows == 0:
        return
    config = launch.penalties(logits.device, vocab_size)
    _penalties_kernel[num_rows, triton.cdiv(vocab_size, config["TILE"])](
        logits,
        counts,
        in_prompt.view(torch.uint8),
        *rows,
        logits.stride(0),
        counts.stride(0),
        in_prompt.stride(0),
        VOCAB_SIZE=vocab_size,
        **config,
    )
    if max_bias:
        config = launch.bias()
        grid = num_rows, triton.cdiv(max_bias, config["TILE"])
        _bias_kernel[grid](logits, bias_ids, bias_values, logits.stride(0), max_bias, vocab_size, **config)


PENALTIES = ("repetition_penalty", "presence_penalty", "frequency_penalty")


def _check(
    logits: Tensor, counts: Tensor, in_prompt: Tensor, rows: tuple[Tensor, ...], bias_ids: Tensor, bias_values: Tensor
) -> None:
    check_logits(logits)
    check_tensor("counts", counts, logits.shape, logits.device, torch.int32, strided_rows=True)
    check_tensor("in_prompt", in_prompt, logits.shape, logits.device, torch.bool, strided_rows=True)
    check_columns(logits, dict.fromkeys(PENALTIES, torch.float32), rows)
    bias_shape = (logits.shape[0], *bias_ids.shape[-1:])
    check_tensor("bias_ids", bias_ids, bias_shape, logits.device, torch.int32)
    check_tensor("bias_values", bias_values, bias_shape, logits.device, torch.float32)

"""Cases of norms, rope, activations and products: ragged widths, strided rows, no rows, values that cancel."""

from collections.abc import Callable, Iterator
from functools import partial
from itertools import cycle, product
from typing import Any

import torch
from torch import Tensor

from octavo.kernels.reference import ACTIVATIONS
from octavo.kernels.testing.case import Arguments, Case
from octavo.kernels.testing.inputs import FLOATS, noise, strided
from octavo.kernels.weights import FORMATS

EPS = 1e-5
NORM_SHAPES = [(3, 1), (3, 3), (3, 50), (3, 64), (40, 576), (3, 768), (3, 1600), (0, 64)]  # num_tokens, dim
VALUES = {"": (1.0, 0.0), "a mean of 100": (1.0, 100.0), "tiny": (1e-6, 0.0), "large": (1e3, 1e3)}  # scale, mean
EXTREMES = (-1e20, -1e4, -88.0, -11.0, -0.0, 0.0, 1e-30, 11.0, 88.0, 1e4, 1e18)


def name_of(*parts: Any) -> str:
    return ", ".join(str(part).removeprefix("torch.") for part in parts if part != "")


def norm(op: str) -> Iterator[Case]:
    for dtype in FLOATS:
        for rows, dim in NORM_SHAPES:
            yield Case(op, name_of(f"{rows} x {dim}", dtype), partial(_norm, op, rows, dim, dtype, 1.0, 0.0))
        for values, (scale, mean) in VALUES.items():
            if values:
                yield Case(op, name_of(f"4 x 768 {values}", dtype), partial(_norm, op, 4, 768, dtype, scale, mean))
        if op.endswith("layer_norm"):
            yield Case(op, name_of("no bias", dtype), partial(_norm_without_bias, op, dtype))
        if not op.startswith("add"):
            for heads in NORM_HEADS:
                yield Case(op, name_of(f"heads {heads}", dtype), partial(_norm_of_heads, op, *heads, dtype))
    yield Case(op, "2 x 48 of zeros, float32", partial(_norm, op, 2, 48, torch.float32, 0.0, 0.0))


NORM_HEADS = [(3, 5, 40), (1, 2, 64), (4, 1, 128), (0, 2, 8)]  # num_tokens, num_heads, head_dim


def _norm_of_heads(op: str, tokens: int, heads: int, dim: int, dtype: torch.dtype, device: torch.device) -> Arguments:
    """Of each head of a view of a fused projection; what lies beside it is NaN."""
    fused = torch.full((tokens, heads + 2, dim), torch.nan, dtype=dtype, device=device)
    fused[:, 1:-1] = noise(tokens, heads, dim, dtype=dtype, device=device)
    return fused[:, 1:-1], *_norm(op, 1, dim, dtype, 1.0, 0.0, device)[1:]


def _norm_without_bias(op: str, dtype: torch.dtype, device: torch.device) -> Arguments:
    *rest, _, eps = _norm(op, 3, 96, dtype, 1.0, 0.5, device)
    return *rest, None, eps


def _norm(
    op: str, rows: int, dim: int, dtype: torch.dtype, scale: float, mean: float, device: torch.device
) -> Arguments:
    def stream(seed: int) -> Tensor:
        return strided((noise(rows, dim, dtype=torch.float32, seed=seed, device=device) * scale + mean).to(dtype))

    streams = [stream(1), stream(2)] if op.startswith("add") else [stream(1)]
    weights = [noise(dim, dtype=dtype, seed=seed, device=device) for seed in (3, 4)]
    return (*streams, *(weights if op.endswith("layer_norm") else weights[:1]), EPS)


ROPE_HEADS = [(1, 1, 8), (9, 3, 64), (3, 1, 40), (4, 4, 2), (40, 8, 16), (2, 1, 256), (2, 4, 24)]


def rope() -> Iterator[Case]:
    """q and k are views of one projection, positions come in any order and more than once."""
    for interleaved in (False, True):
        pairing = "neighbours" if interleaved else "halves"
        for dtype in FLOATS:
            for heads in ROPE_HEADS:
                yield Case("rope", name_of(heads, pairing, dtype), partial(_rope, heads, interleaved, dtype, 6))
        for (rotary_dim, heads), dtype in zip(PARTIAL, cycle(FLOATS), strict=False):
            name = name_of(f"{rotary_dim} of {heads}", pairing, dtype)
            yield Case("rope", name, partial(_rope_partial, rotary_dim, heads, interleaved, dtype))
        yield Case("rope", f"strides of their own, {pairing}", partial(_rope_apart, interleaved))
        yield Case("rope", f"no tokens, {pairing}", partial(_rope, (2, 1, 8), interleaved, torch.float16, 0))


PARTIAL = [(20, (2, 1, 80)), (32, (3, 1, 128)), (2, (2, 2, 8)), (64, (1, 1, 96))]  # rotary_dim, heads


def _rope_partial(
    rotary_dim: int, heads: tuple[int, int, int], interleaved: bool, dtype: torch.dtype, device: torch.device
) -> Arguments:
    q, k, positions, *_ = _rope(heads, interleaved, dtype, 6, device)
    return q, k, positions, *_tables(32, rotary_dim, device), interleaved


def _tables(context_size: int, head_dim: int, device: torch.device) -> tuple[Tensor, Tensor]:
    frequencies = 10000.0 ** -(torch.arange(0, head_dim, 2) / head_dim)
    angles = torch.outer(torch.arange(context_size).float(), frequencies)
    return angles.cos().to(device), angles.sin().to(device)


def _rope(
    heads: tuple[int, int, int], interleaved: bool, dtype: torch.dtype, tokens: int, device: torch.device
) -> Arguments:
    num_heads, num_kv_heads, head_dim = heads
    fused = noise(tokens, num_heads + 2 * num_kv_heads, head_dim, dtype=dtype, device=device)
    q, k, _ = fused.split((num_heads, num_kv_heads, num_kv_heads), 1)
    positions = torch.tensor([31, 0, 7, 7, 30, 1][:tokens], dtype=torch.int32, device=device)
    return q, k, positions, *_tables(32, head_dim, device), interleaved


def _rope_apart(interleaved: bool, device: torch.device) -> Arguments:
    q = noise(3, 4, 2, 24, dtype=torch.float32, device=device)[:, :, 1]
    k = noise(2, 6, 24, dtype=torch.float32, seed=1, device=device).transpose(0, 1)[::2]
    return q, k, torch.arange(3, device=device, dtype=torch.int32), *_tables(8, 24, device), interleaved


def gated(op: str) -> Iterator[Case]:
    for dtype in FLOATS:
        for dim in (1, 2, 25, 64, 127, 576, 1030, 1536, 3072):
            yield Case(op, name_of(f"3 x {dim}", dtype), partial(_gated, 3, dim, dtype))
    yield Case(op, "no tokens", partial(_gated, 0, 32, torch.float16))
    yield Case(op, "extremes", _gated_extremes)


def _gated(rows: int, dim: int, dtype: torch.dtype, device: torch.device) -> Arguments:
    return (strided(noise(rows, 2 * dim, dtype=dtype, device=device) * 3),)


def _gated_extremes(device: torch.device) -> Arguments:
    x = torch.tensor([[*EXTREMES, -3e38, 3e38]], device=device)
    return (torch.cat([x, torch.ones_like(x)], 1),)


EPILOGUES: dict[str, tuple[bool, str | None]] = {
    "": (False, None),
    "bias": (True, None),
    "gelu": (False, "gelu"),
    **{f"bias, {activation}": (True, activation) for activation in ACTIVATIONS if activation},
}
WIDTHS = [(1, 1), (3, 50), (257, 64), (257, 77), (48, 576), (130, 1600)]  # out_features, in_features


TABLES = [(5, 32), (97, 96), (33, 320), (1, 32)]  # num_rows, dim


def embed() -> Iterator[Case]:
    """Of tables in every format: rows in any order, more than once, none, and one beside another."""
    for format, dtype, table in product((None, *FORMATS), FLOATS, TABLES):
        yield _embed_case(7, table, dtype, format)
    for rows, dtype in zip((0, 1, 300), FLOATS, strict=True):
        yield _embed_case(rows, (40, 50), dtype, None)


def _embed_case(rows: int, table: tuple[int, int], dtype: torch.dtype, format: str | None) -> Case:
    name = name_of(f"{rows} of {table[0]} x {table[1]}", format or "", dtype)
    return Case("embed", name, partial(_embed, rows, table, dtype), exact=True, format=format)


def _embed(rows: int, table: tuple[int, int], dtype: torch.dtype, device: torch.device) -> Arguments:
    ids = torch.arange(rows, dtype=torch.int32, device=device) * 31 % table[0]
    return ids, noise(*table, dtype=dtype, seed=2, device=device), dtype


def linear() -> Iterator[Case]:
    """Of weights in every format; the tokens are few, many, and around powers of two.

    Activations beyond GELU are of one dtype each: what they add is the same in all.
    """
    always = list(EPILOGUES)[:4]
    others = zip(list(EPILOGUES)[4:], cycle(FLOATS), strict=False)
    for epilogue, dtype in (*product(always, FLOATS), *others):
        for format, rows in product((None, *FORMATS), (1, 137)):
            yield _linear_case(rows, (97, 96 if format else 72), dtype, epilogue, format)
    for widths in WIDTHS:
        for rows, dtype in ((7, torch.float16), (16, torch.bfloat16), (17, torch.float16), (65, torch.float32)):
            yield _linear_case(rows, widths, dtype, "bias", None)
    for format, rows, dtype in product(FORMATS, (7, 65), FLOATS):
        yield _linear_case(rows, (40, 800), dtype, "bias", format)
        yield _linear_case(rows, (3, 50), dtype, "bias", format)  # no whole blocks: the weight stays dense
    yield _linear_case(0, (8, 16), torch.float16, "", None)
    for activation in ACTIVATIONS:
        if activation:
            yield Case("linear", f"extremes of {activation}", partial(_extremes, activation))


def _linear_case(rows: int, widths: tuple[int, int], dtype: torch.dtype, epilogue: str, format: str | None) -> Case:
    name = name_of(f"{rows} x {widths[1]} -> {widths[0]}", epilogue, format or "", dtype)
    return Case("linear", name, partial(_linear, rows, widths, dtype, *EPILOGUES[epilogue]), format=format)


def _linear(
    rows: int, widths: tuple[int, int], dtype: torch.dtype, has_bias: bool, activation: str | None, device: torch.device
) -> Arguments:
    """The weight is scaled as a network's is, so that y is of order 1."""
    outputs, inputs = widths
    x = strided(noise(rows, inputs, dtype=dtype, seed=1, device=device))
    weight = noise(outputs, inputs, dtype=dtype, seed=2, device=device) * inputs**-0.5
    return x, weight, noise(outputs, dtype=dtype, seed=3, device=device) if has_bias else None, activation


def _extremes(activation: str, device: torch.device) -> Arguments:
    return torch.tensor(EXTREMES, device=device).unsqueeze(1), torch.ones(3, 1, device=device), None, activation


CASES: dict[str, Callable[[], Iterator[Case]]] = {
    **{op: partial(norm, op) for op in ("layer_norm", "rms_norm", "add_layer_norm", "add_rms_norm")},
    "rope": rope,
    **{op: partial(gated, op) for op in ("silu_mul", "gelu_mul")},
    "embed": embed,
    "linear": linear,
}

"""linear against the reference, and the promise that a row's bits depend on no other row."""

import pytest
import torch

from octavo.kernels import reference
from octavo.kernels.testing.inputs import DEVICE, FLOATS, noise, strided
from octavo.kernels.testing.numerics import assert_accurate
from octavo.kernels.triton import launch, linear
from octavo.kernels.weights import quantise

from guarded import far_apart

pytestmark = pytest.mark.usefixtures("guarded_memory")
PREFILL = 2 * launch.MAX_DECODE_TOKENS + 9  # more tokens than a decode tile holds, and no multiple of a tile
LISTED = [key for key in launch.LINEAR if key[0] in launch.ARCHS]


def arguments(num_tokens: int, out_features: int, in_features: int, dtype: torch.dtype) -> dict:
    """Strided inputs; weights are scaled as a network's are, so that y is of order 1."""
    return {
        "x": strided(noise(num_tokens, in_features, dtype=dtype, seed=1)),
        "weight": strided(noise(out_features, in_features, dtype=dtype, seed=2) * in_features**-0.5),
        "bias": noise(out_features, dtype=dtype, seed=3),
    }


EPILOGUES = {
    "plain": {"bias": None},
    "bias": {},
    "gelu": {"bias": None, "activation": "gelu"},
    "bias, gelu": {"activation": "gelu"},
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize(("out_features", "in_features"), [(1, 1), (3, 50), (257, 64), (48, 576), (130, 1600)])
@pytest.mark.parametrize("num_tokens", [7, launch.MAX_DECODE_TOKENS, launch.MAX_DECODE_TOKENS + 1])
def test_widths_that_are_no_power_of_two(dtype, out_features, in_features, num_tokens):
    kwargs = arguments(num_tokens, out_features, in_features, dtype)
    assert_accurate(linear.linear(**kwargs), reference.linear, **kwargs)


def head(kwargs: dict, rows: slice) -> dict:
    """The same call for some of its rows."""
    return {**kwargs, "x": kwargs["x"][rows]}


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("rows", [(0, 1), (0, 16), (3, 4), (0, 64), (0, 65), (100, 137)], ids=str)
def test_a_row_has_the_same_bits_in_decode_and_in_prefill(dtype, rows):
    kwargs = {**arguments(PREFILL, 70, 200, dtype), "activation": "gelu"}
    assert torch.equal(linear.linear(**head(kwargs, slice(*rows))), linear.linear(**kwargs)[slice(*rows)])


def launched_as(config: launch.Config, monkeypatch: pytest.MonkeyPatch, kwargs: dict) -> torch.Tensor:
    """The call, launched as that config says; vendor options mean nothing to the interpreter."""
    known = {name: value for name, value in config.items() if name != "matrix_instr_nonkdim"}
    monkeypatch.setattr(launch, "linear", lambda *facts: known)
    return linear.linear(**kwargs)


@pytest.mark.parametrize(("arch", "itemsize"), LISTED, ids=str)
def test_every_config_of_a_table_gives_the_same_bits(arch, itemsize, monkeypatch):
    kwargs = arguments(70, 50, 150, torch.float32 if itemsize == 4 else torch.float16)
    table = launch.LINEAR[arch, itemsize]
    configs = table.decode_narrow + table.decode + table.prefill
    results = [launched_as(config, monkeypatch, kwargs) for config in configs]
    assert len(results) >= 8
    assert all(torch.equal(result, results[0]) for result in results)


def test_another_order_of_k_gives_other_bits(monkeypatch):
    """What the tests above would see if two configs of a table differed in BLOCK_K."""
    kwargs = arguments(70, 50, 150, torch.float32)
    config = launch.LINEAR["sm_90", 4].decode[0]
    other = {**config, "BLOCK_K": 16}
    assert not torch.equal(launched_as(config, monkeypatch, kwargs), launched_as(other, monkeypatch, kwargs))


@pytest.mark.parametrize("num_tokens", [1, 16, 17, 33, 64])
@pytest.mark.parametrize(("arch", "itemsize"), LISTED, ids=str)
@pytest.mark.parametrize("out_features", [768, 50257])
def test_decode_tiles_hold_all_tokens_in_one_tile(num_tokens, arch, itemsize, out_features, monkeypatch):
    monkeypatch.setattr(launch, "arch_of", lambda device: arch)
    dtype = torch.float32 if itemsize == 4 else torch.bfloat16
    config = launch.linear(torch.device("meta"), dtype, num_tokens, out_features)
    assert num_tokens <= config["BLOCK_M"] < max(2 * num_tokens, 17)


def test_few_tiles_go_to_smaller_tiles(monkeypatch):
    monkeypatch.setattr(launch, "arch_of", lambda device: "sm_90")
    tokens = [launch.linear(DEVICE, torch.bfloat16, n, 768)["BLOCK_M"] for n in (100, 2816, 65536)]
    assert tokens == [64, 128, 256]


def test_rows_beyond_2_31():
    kwargs = arguments(3, 3, 16, torch.float16)
    apart = {name: far_apart(value) if value.ndim == 2 else value for name, value in kwargs.items()}
    assert_accurate(linear.linear(**apart), reference.linear, **kwargs)


def test_no_tokens():
    assert linear.linear(**arguments(0, 8, 16, torch.float16)).shape == (0, 8)


X, W = torch.zeros(2, 8), torch.zeros(4, 8)


@pytest.mark.parametrize(
    ("match", "call"),
    [
        ("^x must be .*2, 1, 8", lambda: linear.linear(X.unsqueeze(1), W)),
        ("^x must be .*float64", lambda: linear.linear(X.double(), W.double())),
        ("^x must have a contiguous last dimension", lambda: linear.linear(torch.zeros(8, 2).T, W)),
        ("^weight must be .*8.*4, 7", lambda: linear.linear(X, torch.zeros(4, 7))),
        ("^weight must be .*float32.*float16", lambda: linear.linear(X, W.half())),
        ("^weight must be .*cpu.*meta", lambda: linear.linear(X, W.to("meta"))),
        ("^weight must have a contiguous last dimension", lambda: linear.linear(X, torch.zeros(8, 4).T)),
        ("^bias must be .*4.*5", lambda: linear.linear(X, W, torch.zeros(5))),
        ("^bias must have a contiguous", lambda: linear.linear(X, W, torch.zeros(8)[::2])),
        (
            "^weight must be a dense tensor, not BlockWeight",
            lambda: linear.linear(X, quantise(torch.zeros(4, 32), "q8_0")),
        ),
        ("^activation must be .*'mish'", lambda: linear.linear(X, W, activation="mish")),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_bad_input_is_named(match, call):
    with pytest.raises(ValueError, match=match):
        call()


GPU_WEIGHTS = [(2304, 768), (50257, 768), (768, 3072), (576, 1536), (1600, 1600), (4096, 14336), (333, 1000)]


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("dtype", "out_features", "in_features"),
    [(torch.bfloat16, *widths) for widths in GPU_WEIGHTS]
    + [(dtype, *widths) for dtype in (torch.float16, torch.float32) for widths in GPU_WEIGHTS[:3]],
    ids=str,
)
def test_at_size_rows_are_accurate_and_the_same_in_decode_and_prefill(dtype, out_features, in_features):
    tensors = {name: value.contiguous() for name, value in arguments(4096, out_features, in_features, dtype).items()}
    kwargs = {**tensors, "activation": "gelu"}
    prefill = linear.linear(**kwargs)
    assert_accurate(prefill[:300], reference.linear, **head(kwargs, slice(300)))
    for rows in [(0, 1), (4095, 4096), (5, 21), (0, 32), (64, 128), (0, 65), (7, 307), (1000, 3000)]:
        assert torch.equal(linear.linear(**head(kwargs, slice(*rows))), prefill[slice(*rows)]), rows


@pytest.mark.gpu
def test_more_than_2_31_values_in_the_output():
    weight, row = noise(50257, 64, dtype=torch.bfloat16), noise(1, 64, dtype=torch.bfloat16, seed=1)
    x = torch.zeros(2**31 // 50257 + 70, 64, dtype=torch.bfloat16, device=DEVICE)
    x[-1:] = row
    y = linear.linear(x, weight)
    assert torch.equal(y[-1:], linear.linear(row, weight))
    assert not y[:-1].any()

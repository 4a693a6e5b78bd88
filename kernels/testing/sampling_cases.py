"""Cases of what turns logits into tokens: every kind of row, every filter on and off, ties, the impossible."""

from collections.abc import Callable, Iterator
from functools import partial

import torch

from octavo.kernels.testing.case import Arguments, Case
from octavo.kernels.testing.draws import allowed_words, any_logits, any_parameters, parameters
from octavo.kernels.testing.inputs import FLOATS, noise, strided
from octavo.kernels.testing.layer_cases import name_of

VOCABULARIES = (1, 2, 7, 33, 111, 257, 1000)
ROWS = 45  # five of each kind of logits


def apply_penalties() -> Iterator[Case]:
    """To the bit in float32, where what is sampled afterwards must be the same everywhere."""
    for dtype in FLOATS:
        for vocab_size in (1, 33, 300, 2049):
            yield _penalties_case(6, vocab_size, 5, dtype)
    for rows, biases in ((0, 3), (2, 0), (2, 300)):
        yield _penalties_case(rows, 400, biases, torch.float32)


def _penalties_case(rows: int, vocab_size: int, biases: int, dtype: torch.dtype) -> Case:
    name = name_of(f"{rows} x {vocab_size}, {biases} biases", dtype)
    make = partial(penalties, rows, vocab_size, dtype, biases)
    return Case("apply_penalties", name, make, in_place=(0,), exact=dtype == torch.float32)


def penalties(rows: int, vocab_size: int, dtype: torch.dtype, max_bias: int, device: torch.device) -> Arguments:
    """Strided logits; a third of the ids said, a third in the prompt; each penalty off in some rows, all off in one."""
    numbers = torch.Generator().manual_seed(vocab_size)
    counts = torch.randint(-2, 4, (rows, vocab_size), generator=numbers).clamp(min=0).int()
    in_prompt = torch.rand(rows, vocab_size, generator=numbers) < 0.3
    columns = torch.rand(3, rows, generator=numbers) + torch.tensor([[0.6], [-0.5], [-0.5]])
    off = torch.rand(3, rows, generator=numbers) < 0.3
    off[:, :1] = True
    columns = torch.where(off, torch.tensor([[1.0], [0.0], [0.0]]), columns)
    ids = torch.rand(rows, max(vocab_size, max_bias), generator=numbers).argsort(-1)[:, :max_bias]
    ids[ids >= vocab_size] = -1
    ids[:, 1::3] = -1
    values = torch.randn(rows, max_bias, generator=numbers) * 10
    return (
        strided(4 * noise(rows, vocab_size, dtype=dtype, device=device)),
        *(tensor.to(device) for tensor in (counts, in_prompt, *columns, ids.int(), values)),
    )


def sample() -> Iterator[Case]:
    for vocab_size in VOCABULARIES:
        yield Case("sample", f"{ROWS} x {vocab_size}", partial(_sample, vocab_size, torch.float32), chooses=True)
    for dtype in FLOATS[1:]:
        yield Case("sample", name_of(f"{ROWS} x 111", dtype), partial(_sample, 111, dtype), chooses=True)
    yield Case("sample", "rows of NaN and of -inf", partial(_sample, 70, torch.float32, broken=True), chooses=True)
    for vocab_size, dtype in ((1, FLOATS[0]), (33, FLOATS[1]), (111, FLOATS[2]), (257, FLOATS[0]), (1000, FLOATS[0])):
        make = partial(_masked, vocab_size, dtype)
        yield Case("sample", name_of(f"{ROWS} x {vocab_size}, masked", dtype), make, chooses=True)
    make = partial(_masked, 70, torch.float32, broken=True)
    yield Case("sample", "masked rows of NaN and of -inf", make, chooses=True)


def _sample(vocab_size: int, dtype: torch.dtype, device: torch.device, broken: bool = False) -> Arguments:
    numbers = torch.Generator().manual_seed(vocab_size)
    logits = _logits(vocab_size, dtype, numbers, device, broken)
    return logits, *any_parameters(ROWS, vocab_size, numbers, device)


def _masked(vocab_size: int, dtype: torch.dtype, device: torch.device, broken: bool = False) -> Arguments:
    """Rows that allow half of the ids, few, one, all, none, all but the likeliest; bits past the last id are set."""
    arguments = _sample(vocab_size, dtype, device, broken)
    numbers, row = torch.Generator().manual_seed(vocab_size + 1), torch.arange(ROWS).unsqueeze(1)
    chances = torch.tensor([0.5, 0.05, 0.0, 1.0, 0.0, 1.0])[row % 6]
    bits = torch.rand(ROWS, vocab_size, generator=numbers) < chances
    bits |= (row % 6 == 2) & (torch.arange(vocab_size) == torch.randint(vocab_size, (ROWS, 1), generator=numbers))
    likeliest = arguments[0].float().argmax(1, keepdim=True).cpu()
    bits &= ~((row % 6 == 5) & (torch.arange(vocab_size) == likeliest))
    return *arguments, allowed_words(bits).to(device)


def _logits(
    vocab_size: int, dtype: torch.dtype, numbers: torch.Generator, device: torch.device, broken: bool
) -> torch.Tensor:
    logits = any_logits(ROWS, vocab_size, numbers, device)
    if broken:
        logits[3, vocab_size - 1], logits[6] = torch.nan, -torch.inf
    return logits if dtype == torch.float32 else strided(logits.clamp(-6e4, 6e4).to(dtype))


def lm_head_sample() -> Iterator[Case]:
    """Small integers: no order of addition rounds, and ties abound."""
    for dtype in FLOATS:
        for shape in ((1, 33, 16), (3, 130, 100), (9, 1000, 48), (70, 257, 64), (5, 1, 32)):
            name = name_of("{} x {} of {}".format(*shape), dtype)
            yield Case("lm_head_sample", name, partial(_head, *shape, dtype), chooses=True)


def _head(rows: int, vocab_size: int, dim: int, dtype: torch.dtype, device: torch.device) -> Arguments:
    numbers = torch.Generator().manual_seed(dim)
    hidden, weight = (torch.randint(-1, 2, (size, dim), generator=numbers).to(dtype) for size in (rows, vocab_size))
    heats = [(0.0, 1.0, 1e-4, 50.0)[row % 4] for row in range(rows)]
    columns = parameters(rows, heats, seeds=range(-3, rows - 3), positions=range(rows), device=device)
    return strided(hidden.to(device)), weight.to(device), columns[0], columns[4], columns[5]


def top_logprobs() -> Iterator[Case]:
    for vocab_size, num in ((1, 1), (7, 7), (33, 5), (111, 20), (1000, 3)):
        make = partial(_top, vocab_size, num, torch.float32)
        yield Case("top_logprobs", f"{num} of {ROWS} x {vocab_size}", make, chooses=True)
    for dtype in FLOATS[1:]:
        yield Case("top_logprobs", name_of(f"9 of {ROWS} x 111", dtype), partial(_top, 111, 9, dtype), chooses=True)
    make = partial(_top, 70, 4, torch.float32, broken=True)
    yield Case("top_logprobs", "rows of NaN and of -inf", make, chooses=True)


def _top(vocab_size: int, num: int, dtype: torch.dtype, device: torch.device, broken: bool = False) -> Arguments:
    return _logits(vocab_size, dtype, torch.Generator().manual_seed(vocab_size), device, broken), num


CASES: dict[str, Callable[[], Iterator[Case]]] = {
    "apply_penalties": apply_penalties,
    "sample": sample,
    "lm_head_sample": lm_head_sample,
    "top_logprobs": top_logprobs,
}

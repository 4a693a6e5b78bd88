"""The ops at the shapes of a model: inputs from a seeded generator, and the bytes and FLOPs that cannot be avoided."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from octavo.gpt.models.batch import dense_batch
from octavo.gpt.models.config import ModelConfig
from octavo.gpt.models.registry import family_of
from octavo.gpt.models.rope import rope_tables
from octavo.kernels.ops import OP_NAMES, REFERENCE

BLOCK_SIZE = 16
Arguments = tuple[Any, ...]


@dataclass(frozen=True)
class Case:
    """One op at one shape. `make()` gives its arguments, the weight of `linear` unpacked."""

    op: str
    shape: str
    make: Callable[[], Arguments]
    num_bytes: int
    num_flops: int = 0
    mutates: tuple[int, ...] = ()  # arguments changed in place, which are then the result
    exact_first: bool = False  # the first result is made of ids: bit for bit, and the rest follows


@dataclass(frozen=True)
class Shapes:
    """Everything a case is cut from."""

    config: ModelConfig
    device: torch.device
    dtype: torch.dtype
    num_seqs: int
    context: int
    prefill: int  # tokens of one prompt
    seed: int

    def normal(self, *size: int) -> Tensor:
        generator = torch.Generator().manual_seed(self.seed + sum(size))
        return torch.randn(*size, generator=generator).to(self.device, self.dtype)

    def ints(self, values: list[Any] | Tensor, dtype: torch.dtype = torch.int32) -> Tensor:
        return torch.as_tensor(values, dtype=dtype).to(self.device)

    @property
    def itemsize(self) -> int:
        return self.dtype.itemsize


def cases(shapes: Shapes) -> Iterator[Case]:
    """Every op that the model's family calls, in decode and, where it differs, in prefill."""
    for tokens, phase in ((shapes.num_seqs, "decode"), (shapes.prefill, "prefill")):
        yield from layer_cases(shapes, tokens, phase)
        yield _write_kv(shapes, tokens, phase)
    yield _causal(shapes)
    yield _paged(shapes, "decode", [shapes.context] * shapes.num_seqs)
    yield _paged(shapes, "skewed", skewed(shapes.num_seqs, shapes.num_seqs * shapes.context))
    yield from _sampling(shapes)
    yield from _head_and_draw(shapes)


def distinct_cases(sizes: Iterable[Shapes]) -> list[Case]:
    """The cases at all of these sizes, each shape of an op once."""
    return list({(case.op, case.shape): case for shapes in sizes for case in cases(shapes)}.values())


OF_LAYERS = ("layer_norm", "rms_norm", "add_layer_norm", "add_rms_norm", "linear", "silu_mul", "rope")
STUBS: dict[str, Callable[..., Any]] = {  # ops that the reference cannot do without memory
    "write_kv": lambda *_: None,
    "causal_attention": lambda q, *_: torch.empty_like(q),
    "rope": lambda q, k, *_: (torch.empty_like(q), torch.empty_like(k)),
}


def layer_cases(s: Shapes, tokens: int, phase: str) -> list[Case]:
    """What one layer of the network, and in decode its head, call for so many tokens, each op once per shape.

    The network runs without memory, so that its tensors have shapes alone.
    """
    found: dict[tuple[str, str], Case] = {}

    def noted(op: str) -> Callable[..., Any]:
        def call(*arguments: Any) -> Any:
            result = STUBS.get(op, getattr(REFERENCE, op))(*arguments)
            if op in OF_LAYERS:
                role = roles.get(id(arguments[1]), "head") if op == "linear" else ""
                case = (
                    _rope(s, phase, *arguments[:2])
                    if op == "rope"
                    else _of_layer(s, phase, op, role, arguments, result)
                )
                found.setdefault((op, case.shape), case)
            return result

        return call

    watched: dict[str, Any] = {op: noted(op) for op in OP_NAMES}
    ops = replace(REFERENCE, name="noted", **watched)
    model = family_of(s.config).empty(replace(s.config, num_layers=1), ops)
    roles = {
        id(module.weight): name.split(".")[-1] for name, module in model.named_modules() if hasattr(module, "weight")
    }
    hidden = model(dense_batch(torch.zeros(1, tokens, dtype=torch.int32, device="meta")))
    if phase == "decode":
        model.logits(hidden)
    return list(found.values())


def _of_layer(s: Shapes, phase: str, op: str, role: str, arguments: Arguments, result: Any) -> Case:
    """A norm, an activation or a product, on values drawn for the shapes of the call; role: the product's weight."""
    tokens, width = arguments[0].shape
    shape, flops = f"{phase} {tokens} x {width}", 0
    if op == "linear":
        n = arguments[1].shape[0]
        shape, flops = f"{phase} {role} {tokens} x {width} -> {n}", 2 * tokens * n * width
    results = result if isinstance(result, tuple) else (result,)
    moved = sum(a.numel() for a in (*arguments, *results) if isinstance(a, Tensor))  # read and written, each once
    return Case(op, shape, partial(_drawn, s, op, arguments), moved * s.itemsize, flops)


def _drawn(s: Shapes, op: str, arguments: Arguments) -> Arguments:
    """Values for the shapes of these, no two tensors alike; weights have the size of fresh ones."""
    values: list[Any] = []
    for i, argument in enumerate(arguments):
        if isinstance(argument, Tensor):
            drawn = s.normal(*argument.shape).roll(i, -1)
            values.append(drawn * argument.shape[1] ** -0.5 if op == "linear" and i == 1 else drawn)
        else:
            values.append(argument)
    return tuple(values)


def _rope(s: Shapes, phase: str, q: Tensor, k: Tensor) -> Case:
    tokens, head_dim, heads = len(q), q.shape[2], q.shape[1] + k.shape[1]

    def make() -> Arguments:
        cos, sin = (table.to(s.device) for table in rope_tables(head_dim, tokens, 10000.0, None))
        return s.normal(*q.shape), s.normal(*k.shape), s.ints(torch.arange(tokens)), cos, sin

    moved = tokens * (2 * heads * head_dim * s.itemsize + head_dim * 4)
    return Case("rope", f"{phase} {tokens} x {heads} x {head_dim}", make, moved)


def _write_kv(s: Shapes, tokens: int, phase: str) -> Case:
    c = s.config

    def make() -> Arguments:
        k, v = s.normal(tokens, c.num_kv_heads, c.head_dim), s.normal(tokens, c.num_kv_heads, c.head_dim)
        blocks = -(-tokens // BLOCK_SIZE) + 1
        caches = (torch.zeros(blocks, BLOCK_SIZE, c.num_kv_heads, c.head_dim).to(k) for _ in range(2))
        return k, v, *caches, s.ints(torch.arange(tokens).flip(0))

    moved = 4 * tokens * c.num_kv_heads * c.head_dim * s.itemsize
    return Case("write_kv", f"{phase} {tokens} x {c.num_kv_heads} x {c.head_dim}", make, moved, mutates=(2, 3))


def _causal(s: Shapes) -> Case:
    c, n = s.config, s.prefill

    def make() -> Arguments:
        q, k, v = (s.normal(n, heads, c.head_dim) for heads in (c.num_heads, c.num_kv_heads, c.num_kv_heads))
        return q, k, v.flip(0), s.ints([0, n]), n, c.head_dim**-0.5

    moved = 2 * n * (c.num_heads + c.num_kv_heads) * c.head_dim * s.itemsize
    flops = 2 * n * n * c.num_heads * c.head_dim
    return Case("causal_attention", f"prefill 1 x {n}", make, moved, flops)


def skewed(num_seqs: int, total: int) -> list[int]:
    """Context lengths 1:100, one sequence in ten a long one, that add up to about `total`."""
    weights = [100 if i % 10 == 0 else 1 for i in range(num_seqs)]
    return [max(1, total * weight // sum(weights)) for weight in weights]


def _paged(s: Shapes, phase: str, lengths: list[int]) -> Case:
    c, used = s.config, [-(-length // BLOCK_SIZE) for length in lengths]

    def make() -> Arguments:
        order = torch.randperm(sum(used), generator=torch.Generator().manual_seed(s.seed)).split(used)
        table = torch.nn.utils.rnn.pad_sequence(order, batch_first=True, padding_value=-1)
        caches = [s.normal(sum(used), BLOCK_SIZE, c.num_kv_heads, c.head_dim) for _ in range(2)]
        ends = s.ints(torch.arange(s.num_seqs + 1))
        q = s.normal(s.num_seqs, c.num_heads, c.head_dim)
        return q, caches[0], caches[1].flip(0), s.ints(table), s.ints(lengths), ends, 1, c.head_dim**-0.5

    moved = 2 * (sum(lengths) * c.num_kv_heads + s.num_seqs * c.num_heads) * c.head_dim * s.itemsize
    flops = 4 * sum(lengths) * c.num_heads * c.head_dim
    return Case("paged_attention", f"{phase} {s.num_seqs} x {s.context}", make, moved, flops)


def _sampling(s: Shapes) -> Iterator[Case]:
    n, vocab = s.num_seqs, s.config.vocab_size
    size = n * vocab * s.itemsize

    def make(temperature: float, top_k: int, top_p: float, min_p: float) -> Arguments:
        floats = [torch.full((n,), value, device=s.device) for value in (temperature, top_p, min_p)]
        ints = s.ints([top_k] * n), s.ints(list(range(n)), torch.int64), s.ints([s.context] * n)
        return 4 * s.normal(n, vocab), floats[0], ints[0], floats[1], floats[2], ints[1], ints[2]

    forms = {"greedy": (0.0, 0, 1.0, 0.0), "plain": (1.0, 0, 1.0, 0.0), "k p m": (0.8, 50, 0.9, 0.02)}
    for name, numbers in forms.items():
        yield Case("sample", f"{name} {n} x {vocab}", partial(make, *numbers), size, exact_first=True)
    top = lambda: (s.normal(n, vocab), 5)  # noqa: E731
    yield Case("top_logprobs", f"5 of {n} x {vocab}", top, size, exact_first=True)
    yield Case("apply_penalties", f"{n} x {vocab}", lambda: _penalties(s), 2 * size + 5 * n * vocab, mutates=(0,))


def _head_and_draw(s: Shapes) -> Iterator[Case]:
    """The head and the draw on small integers: every sum is exact in every dtype, so backends must agree on the id."""
    n, dim, vocab = s.num_seqs, s.config.dim, s.config.vocab_size

    def make(temperature: float) -> Arguments:
        generator = torch.Generator().manual_seed(s.seed)
        hidden, weight = (torch.randint(-1, 2, (rows, dim), generator=generator) for rows in (n, vocab))
        seeds, positions = s.ints(list(range(n)), torch.int64), s.ints([s.context] * n)
        temperatures = torch.full((n,), temperature, device=s.device)
        return hidden.to(s.device, s.dtype), weight.to(s.device, s.dtype), temperatures, seeds, positions

    moved, flops = (n + vocab) * dim * s.itemsize, 2 * n * vocab * dim
    for name, temperature in (("greedy", 0.0), ("plain", 1.0)):
        shape = f"{name} {n} x {dim} -> {vocab}"
        yield Case("lm_head_sample", shape, partial(make, temperature), moved, flops, exact_first=True)


def _penalties(s: Shapes) -> Arguments:
    n, vocab = s.num_seqs, s.config.vocab_size
    generator = torch.Generator().manual_seed(s.seed)
    counts = (torch.rand(n, vocab, generator=generator) < 0.01).int().to(s.device)
    generated = (torch.rand(n, vocab, generator=generator) < 0.01).to(s.device)
    columns: list[Any] = [torch.full((n,), value, device=s.device) for value in (1.2, 0.1, 0.1)]
    nothing = s.ints([[-1]] * n), torch.zeros(n, 1, device=s.device)
    return s.normal(n, vocab), counts, generated, *columns, *nothing

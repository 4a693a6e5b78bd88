"""Lines of results: what is stored, and the figures that follow. bench/results/README.md explains each field."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from math import exp
from typing import Any, ClassVar

from octavo.bench.measuring.timing import median, percentile, spread
from octavo.bench.measuring.workloads import Load

SCHEMA = "octavo.bench/2"
VERDICTS = ("same", "rounding", "quantised", "wrong", "failed", "unsupported")
PASSED = VERDICTS[:3]


@dataclass(frozen=True)
class Run:
    """Where, when and with what the lines below it were measured."""

    command: str  # that measured: decode, ops, host, serve, engine, perplexity or memory
    command_line: str
    date: str  # UTC, ISO 8601
    seed: int
    commit: str | None  # of the checkout; None where octavo is installed without one
    dirty: bool | None  # whether tracked files differed from the commit, results and the README aside
    device: str  # cpu or cuda
    device_name: str
    num_cores: int  # of the CPU, physical, that this process may use
    threads: int  # of PyTorch, and given to every peer
    memory_bytes: int | None  # of the device
    driver: str | None
    clocks: str | None  # as the driver or the kernel tells them, at the start
    load: float | None  # cores that others kept busy at the start
    versions: dict[str, str]
    copy_bytes_per_s: float  # a large copy, bytes read and written
    read_bytes_per_s: float  # a large sum, or on a CPU a plain read where that is faster
    matmul_flops_per_s: dict[str, float]  # dtype -> a large product
    planned: int  # lines that a complete run has
    neighbours: int = 0  # programs that kept a core busy each, meanwhile

    @property
    def bandwidth(self) -> float:
        """Bytes a second of the faster of the two streams: the roofline."""
        return max(self.copy_bytes_per_s, self.read_bytes_per_s)

    @property
    def machine(self) -> str:
        cores = f"{self.num_cores} core{'s' if self.num_cores > 1 else ''}"
        return self.device_name if self.device == "cuda" else f"{self.device_name}, {cores}"


class Measured:
    """One line of what was measured: its samples, and as properties the figures that follow from them."""

    KEY: ClassVar[tuple[str, ...]]  # the fields that make two lines figures of the same thing
    WHO: ClassVar[tuple[str, ...]] = ("backend", "dtype")  # whose figures they are
    PLACE: ClassVar[tuple[str, ...]] = ()  # at which sizes, or in which situation
    verdict: str
    detail: str

    @property
    def key(self) -> tuple[Any, ...]:
        return tuple(getattr(self, name) for name in self.KEY)

    @property
    def passed(self) -> bool:
        return getattr(self, "verdict", "same") in PASSED

    @property
    def who(self) -> str:
        return " ".join(getattr(self, name) for name in self.WHO)

    @property
    def place(self) -> str:
        return " ".join(str(getattr(self, name)) for name in self.PLACE)


def _figure(samples: str, figure: Callable[[list[float]], float], unless: str = "") -> property:
    """A figure that follows from samples, in lists or in lists of lists; None where there are none, or where the field
    `unless` is true."""

    def value(record: Any) -> float | None:
        found = getattr(record, samples)
        values = [*chain(*found)] if found and isinstance(found[0], list) else found
        return None if not values or (unless and getattr(record, unless)) else figure(values)

    return property(value)


def _rate(amount: Callable[[Any], float], seconds: str) -> property:
    """An amount by the seconds that it took; None where they are unknown."""

    def value(record: Any) -> float | None:
        taken = getattr(record, seconds)
        return amount(record) / taken if taken else None

    return property(value)


p10, p90, p99 = (partial(percentile, share=share) for share in (0.1, 0.9, 0.99))


@dataclass(frozen=True)
class Decode(Measured):
    """One contender at one batch size and context length. Lists hold one entry a repeat."""

    KEY = ("model", "contender", "dtype", "batch", "context", "new_tokens")
    WHO = ("contender", "dtype")

    model: str
    dummy: bool  # random weights
    contender: str  # octavo:<backend>, or a peer
    version: str
    dtype: str  # of weights and arithmetic; a peer's own format where it has one
    batch: int
    context: int  # as asked for; the prompt is shorter where the window would not hold the output beside it
    prompt_tokens: int
    new_tokens: int
    verdict: str  # of the check: same, rounding, quantised, wrong; or failed, unsupported
    detail: str  # the check in words, or why there is no figure
    load_s: float | None = None  # opening the model
    warmup_s: float | None = None  # the first pass, compiling included; its tokens were the ones checked
    ttft_s: list[float] = field(default_factory=list)  # until every sequence had its first token
    step_s: list[list[float]] = field(default_factory=list)  # of the steps that gave every sequence a token
    steps_are_means: bool = False  # True where a peer does not tell when a token is ready
    step_probe_s: list[float] = field(default_factory=list)  # fixed work before each repeat, like a decode step
    prefill_probe_s: list[float] = field(default_factory=list)  # and like a prefill
    peak_memory_bytes: int | None = None  # the contender's own, while it answered the checked prompts
    step_bytes: int | None = None  # weights and cache that one step must read
    bandwidth_share: float | None = None  # step_bytes / tpot_median_s, of the run's bandwidth
    compute_share: float | None = None  # FLOPs of a step / tpot_median_s, of the run's matmul rate
    prefill_compute_share: float | None = None  # FLOPs of the prefill / ttft_median_s, of the same

    ttft_median_s = _figure("ttft_s", median)
    ttft_spread = _figure("ttft_s", spread)
    tpot_median_s = _figure("step_s", median)  # time per output token: a step's
    tpot_p90_s = _figure("step_s", p90, unless="steps_are_means")
    tpot_p99_s = _figure("step_s", p99, unless="steps_are_means")
    tpot_spread = _figure("step_s", spread)
    prefill_tokens_per_s = _rate(lambda record: record.batch * record.prompt_tokens, "ttft_median_s")
    decode_tokens_per_s = _rate(lambda record: record.batch, "tpot_median_s")

    @property
    def place(self) -> str:
        return f"batch {self.batch} context {self.context}"


@dataclass(frozen=True)
class Op(Measured):
    """One op on one backend at one shape, the caches cold."""

    KEY = ("op", "shape", "backend", "dtype")
    PLACE = ("op", "shape")

    op: str
    shape: str
    backend: str  # one of octavo's, or a peer
    dtype: str
    verdict: str  # same, rounding, wrong or failed
    detail: str
    samples: list[float]  # seconds, one a call
    num_bytes: int  # that the op must read and write
    num_flops: int
    bandwidth_share: float | None  # num_bytes / median_s, of the run's bandwidth
    compute_share: float | None  # num_flops / median_s, of the run's matmul rate

    median_s = _figure("samples", median)
    p10_s = _figure("samples", p10)
    p90_s = _figure("samples", p90)
    bytes_per_s = _rate(lambda record: record.num_bytes, "median_s")
    flops_per_s = _rate(lambda record: record.num_flops, "median_s")


@dataclass(frozen=True)
class Host(Measured):
    """The engine around a model that returns at once."""

    KEY = PLACE = ("num_seqs", "context", "way")
    WHO = ()

    num_seqs: int
    context: int
    tokenizer: str | None
    samples: list[float]  # seconds, one a step
    bytes_per_waiting: int  # of a queued request, its prompt's ids apart
    way: str = "fused"  # how tokens are drawn: fused, as greedy ones are; from logits; in a schema

    median_s = _figure("samples", median)
    p90_s = _figure("samples", p90)


@dataclass(frozen=True)
class Serve(Measured):
    """One load on `AsyncLLM`. Lists hold an entry for each request that was completed, in order of arrival."""

    KEY = ("model", "backend", "dtype", "mix", "load", "level", "num_requests", "seed")

    model: str
    dummy: bool
    backend: str
    dtype: str
    mix: str  # of lengths
    load: str  # open: a Poisson process; closed: so many callers, each waiting for its answer
    level: float  # requests a second, or callers
    num_requests: int
    seed: int
    verdict: str  # same, rounding, wrong or failed
    detail: str
    num_refused: int = 0  # the queue was full
    prompt_tokens: int | None = None  # of the requests that were completed
    duration_s: float | None = None  # from the first arrival to the last token
    warmup_s: float | None = None  # the requests that are checked, each alone, before any load
    ttft_s: list[float] = field(default_factory=list)  # from the moment a request was due
    itl_s: list[list[float]] = field(default_factory=list)  # between one token and the next
    late_s: float | None = None  # the most by which the generator itself sent a request after it was due
    ttft_bound_s: float | None = None
    tpot_bound_s: float | None = None

    ttft_median_s = _figure("ttft_s", median)
    ttft_p90_s = _figure("ttft_s", p90)
    ttft_p99_s = _figure("ttft_s", p99)
    itl_median_s = _figure("itl_s", median)  # of all gaps of all requests
    itl_p90_s = _figure("itl_s", p90)
    itl_p99_s = _figure("itl_s", p99)
    requests_per_s = _rate(lambda record: len(record.ttft_s), "duration_s")  # completed
    output_tokens_per_s = _rate(lambda record: record.output_tokens, "duration_s")
    goodput_per_s = _rate(lambda record: record.num_good, "duration_s")

    @property
    def place(self) -> str:
        return f"{self.load}: {Load(self.load, self.level)}"

    @property
    def output_tokens(self) -> int:
        """Of the requests that were completed."""
        return sum(1 + len(gaps) for gaps in self.itl_s)

    @property
    def num_good(self) -> int | None:
        """Requests whose first token and whose mean gap were both within the bounds."""
        if self.ttft_bound_s is None or self.tpot_bound_s is None or not self.ttft_s:
            return None
        return sum(
            ttft <= self.ttft_bound_s and sum(gaps) / len(gaps) <= self.tpot_bound_s
            for ttft, gaps in zip(self.ttft_s, self.itl_s, strict=True)
        )


@dataclass(frozen=True)
class Scenario(Measured):
    """The same requests served in one of two ways. Lists hold an entry a repeat."""

    KEY = ("model", "backend", "dtype", "scene", "way", "num_requests")
    PLACE = ("scene", "way")

    model: str
    dummy: bool
    backend: str
    dtype: str
    scene: str  # prefix or batching
    way: str  # caching on, caching off; together, one by one
    num_requests: int
    prompt_tokens: int  # of all requests, of the first repeat
    new_tokens: int
    verdict: str  # same, rounding, wrong or failed
    detail: str
    computed_tokens: int | None = None  # prompt tokens that were prefilled, of the first repeat
    seconds: list[float] = field(default_factory=list)  # until the last request ended

    median_s = _figure("seconds", median)
    spread = _figure("seconds", spread)
    tokens_per_s = _rate(lambda record: record.new_tokens, "median_s")  # generated


@dataclass(frozen=True)
class Perplexity(Measured):
    """How well one contender predicts a text."""

    KEY = ("model", "contender", "dtype", "text", "window", "num_tokens")
    WHO = ("contender", "dtype")
    PLACE = ("text",)

    model: str
    contender: str  # octavo:<backend>, or a peer
    version: str
    dtype: str  # of weights and arithmetic, or a format of weights
    text: str  # the file's name
    window: int  # tokens that are read at once, and know nothing of those before
    num_tokens: int  # that were predicted
    verdict: str  # same or quantised weights; or failed, unsupported
    detail: str
    weight_bits: float | None = None  # the mean size of a weight that a step reads
    nll: float | None = None  # minus the mean log-probability, in nats

    @property
    def perplexity(self) -> float | None:
        return None if self.nll is None else exp(self.nll)


@dataclass(frozen=True)
class Memory(Measured):
    """What one contender takes in a process of its own, beyond what the process held before it opened."""

    KEY = ("model", "contender", "dtype", "num_lengths")
    WHO = ("contender", "dtype")
    PLACE = ("model",)

    model: str
    dummy: bool
    contender: str  # octavo:<backend>, or a peer
    version: str
    dtype: str  # of weights and arithmetic, or a format of weights
    num_lengths: int  # prompts of so many lengths were answered at the end
    verdict: str  # same or quantised weights; or failed, unsupported
    detail: str
    load_s: float | None = None  # opening the model, imports apart
    weights_bytes: int | None = None  # of the weights that a step reads, in their format
    load_peak_bytes: int | None = None  # the most that was held while it opened
    loaded_bytes: int | None = None  # that it kept then
    peak_bytes: int | None = None  # the most that was held while it answered
    resident_bytes: int | None = None  # that it kept then
    grown_bytes: int | None = None  # kept from the tenth length to the last; None where there were no more than ten


KINDS: dict[str, type[Any]] = {
    "run": Run, "decode": Decode, "op": Op, "host": Host, "serve": Serve, "engine": Scenario,
    "perplexity": Perplexity, "memory": Memory,
}  # fmt: skip
KIND_OF = {  # a command's lines
    "decode": "decode", "ops": "op", "host": "host", "serve": "serve", "engine": "engine", "perplexity": "perplexity",
    "memory": "memory",
}  # fmt: skip


def derived(kind: type[Any]) -> set[str]:
    """The names of the figures that follow from the samples. Files of earlier versions hold them too."""
    return {name for name, value in vars(kind).items() if isinstance(value, property)}

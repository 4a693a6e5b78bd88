"""What a line of results says: the schema is these classes, and bench/results/README.md explains their fields."""

from dataclasses import dataclass, field
from typing import Any

SCHEMA = "octavo.bench/2"


@dataclass(frozen=True)
class Run:
    """Where, when and with what the lines below it were measured."""

    command: str  # that measured: decode, ops, host, serve or engine
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
    read_bytes_per_s: float  # a large sum
    matmul_flops_per_s: dict[str, float]  # dtype -> a large product
    planned: int  # lines that a complete run has

    @property
    def bandwidth(self) -> float:
        """Bytes a second of the faster of the two streams: the roofline."""
        return max(self.copy_bytes_per_s, self.read_bytes_per_s)

    @property
    def machine(self) -> str:
        cores = f"{self.num_cores} core{'s' if self.num_cores > 1 else ''}"
        return self.device_name if self.device == "cuda" else f"{self.device_name}, {cores}"


@dataclass(frozen=True)
class Decode:
    """One contender at one batch size and context length. Lists hold one entry a repeat."""

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
    ttft_median_s: float | None = None
    prefill_tokens_per_s: float | None = None  # prompt tokens of the batch / ttft_median_s
    tpot_median_s: float | None = None  # time per output token: a step's
    tpot_p90_s: float | None = None
    tpot_p99_s: float | None = None
    decode_tokens_per_s: float | None = None  # batch / tpot_median_s
    tpot_spread: float | None = None  # (p90 - p10) / median, of all steps
    ttft_spread: float | None = None  # the same of the repeats' first tokens
    step_probe_s: list[float] = field(default_factory=list)  # fixed work before each repeat, like a step
    prefill_probe_s: list[float] = field(default_factory=list)  # and like a prefill
    peak_memory_bytes: int | None = None  # the contender's own, while it answered the checked prompts
    step_bytes: int | None = None  # weights and cache that one step must read
    bandwidth_share: float | None = None  # step_bytes / tpot_median_s, of the run's bandwidth
    compute_share: float | None = None  # FLOPs of a step / tpot_median_s, of the run's matmul rate
    prefill_compute_share: float | None = None  # FLOPs of the prefill / ttft_median_s, of the same

    @property
    def key(self) -> tuple[Any, ...]:
        """What makes two lines figures of the same thing."""
        return self.model, self.contender, self.dtype, self.batch, self.context, self.new_tokens

    @property
    def passed(self) -> bool:
        return self.verdict in ("same", "rounding", "quantised")


@dataclass(frozen=True)
class Op:
    """One op on one backend at one shape, the caches cold."""

    op: str
    shape: str
    backend: str  # one of octavo's, or a peer
    dtype: str
    verdict: str  # same, rounding, wrong or failed
    detail: str
    samples: list[float]  # seconds, one a call
    median_s: float | None
    p10_s: float | None
    p90_s: float | None
    num_bytes: int  # that the op must read and write
    num_flops: int
    bandwidth_share: float | None
    compute_share: float | None

    @property
    def key(self) -> tuple[Any, ...]:
        return self.op, self.shape, self.backend, self.dtype

    @property
    def passed(self) -> bool:
        return self.verdict in ("same", "rounding")


@dataclass(frozen=True)
class Host:
    """The engine around a model that returns at once."""

    num_seqs: int
    context: int
    tokenizer: str | None
    samples: list[float]  # seconds, one a step
    median_s: float
    p90_s: float
    bytes_per_waiting: int  # of a queued request, its prompt's ids apart

    @property
    def key(self) -> tuple[Any, ...]:
        return self.num_seqs, self.context

    @property
    def passed(self) -> bool:
        return True


@dataclass(frozen=True)
class Serve:
    """One load on `AsyncLLM`. Lists hold an entry for each request that was completed, in order of arrival."""

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
    output_tokens: int | None = None
    duration_s: float | None = None  # from the first arrival to the last token
    warmup_s: float | None = None  # the requests that are checked, each alone, before any load
    ttft_s: list[float] = field(default_factory=list)  # from the moment a request was due
    itl_s: list[list[float]] = field(default_factory=list)  # between one token and the next
    late_s: float | None = None  # the most by which the generator itself sent a request after it was due
    requests_per_s: float | None = None  # completed
    output_tokens_per_s: float | None = None
    ttft_median_s: float | None = None
    ttft_p90_s: float | None = None
    ttft_p99_s: float | None = None
    itl_median_s: float | None = None  # of all gaps of all requests
    itl_p90_s: float | None = None
    itl_p99_s: float | None = None
    ttft_bound_s: float | None = None
    tpot_bound_s: float | None = None
    num_good: int | None = None  # whose first token and mean gap were both within the bounds
    goodput_per_s: float | None = None  # num_good / duration_s

    @property
    def key(self) -> tuple[Any, ...]:
        return (
            self.model, self.backend, self.dtype, self.mix, self.load, self.level, self.num_requests, self.seed,
        )  # fmt: skip

    @property
    def passed(self) -> bool:
        return self.verdict in ("same", "rounding")


@dataclass(frozen=True)
class Scene:
    """The same requests served in one of two ways. Lists hold an entry a repeat."""

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
    median_s: float | None = None
    spread: float | None = None  # (p90 - p10) / median
    tokens_per_s: float | None = None  # generated, over the median

    @property
    def key(self) -> tuple[Any, ...]:
        return self.model, self.backend, self.dtype, self.scene, self.way, self.num_requests

    @property
    def passed(self) -> bool:
        return self.verdict in ("same", "rounding")


KINDS: dict[str, type[Any]] = {
    "run": Run, "decode": Decode, "op": Op, "host": Host, "serve": Serve, "engine": Scene,
}  # fmt: skip
KIND_OF = {"decode": "decode", "ops": "op", "host": "host", "serve": "serve", "engine": "engine"}  # a command's lines
VERDICTS = ("same", "rounding", "quantised", "wrong", "failed", "unsupported")
Measured = Decode | Op | Host | Serve | Scene

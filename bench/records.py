"""Results as JSON lines: a line of provenance, then a line for each thing measured. The schema is these classes.

Every line names the schema and its kind. A file is read whole or refused: another schema, a missing or unknown field,
a wrong type or a line cut short is a ValueError that names file and line. bench/results/README.md explains the fields.
"""

import json
import os
import types
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

SCHEMA = "octavo.bench/1"

Cells = TypeVar("Cells", "Decode", "Op", "Host")


@dataclass(frozen=True)
class Run:
    """Where, when and with what the lines below it were measured."""

    command: str  # decode, ops or host
    command_line: str
    date: str  # UTC, ISO 8601
    seed: int
    commit: str | None  # of the checkout; None where octavo is installed without one
    dirty: bool | None  # whether tracked files differed from the commit
    device: str  # cpu or cuda
    device_name: str
    num_cores: int  # of the CPU, physical, that this process may use
    threads: int  # of PyTorch, and given to every peer
    memory_bytes: int | None  # of the device
    driver: str | None
    clocks: str | None  # as the driver or the kernel tells them, at the start
    load: float | None  # the machine's load average at the start: above zero, others were at work
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
    peak_memory_bytes: int | None = None  # beyond what the process held before the contender was opened
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


KINDS: dict[str, type[Run] | type[Decode] | type[Op] | type[Host]] = {
    "run": Run, "decode": Decode, "op": Op, "host": Host,
}  # fmt: skip
Measured = Decode | Op | Host


@dataclass(frozen=True)
class Results:
    """A run and what it measured."""

    run: Run
    cells: list[Any]
    path: Path


class Writer:
    """Appends lines to a file, each one whole and on disk before the next is measured."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, record: Run | Measured) -> None:
        kind = next(name for name, kind in KINDS.items() if type(record) is kind)
        line = json.dumps({"schema": SCHEMA, "kind": kind, **asdict(record)}, allow_nan=False)
        with self.path.open("a", encoding="utf-8") as file:
            file.write(line + "\n")
            file.flush()
            os.fsync(file.fileno())


def read(path: Path) -> Results:
    """The file's run and lines; FileNotFoundError or ValueError, one clear line."""
    if path.is_dir():
        found = sorted(path.glob("*.jsonl"))
        if len(found) != 1:
            raise ValueError(f"{path} holds {len(found)} files of results: name one")
        path = found[0]
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file of results")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise ValueError(f"{path}: not UTF-8 text, so no file of results") from None
    lines = text.split("\n")
    if lines.pop():
        raise ValueError(f"{path}: line {len(lines) + 1} is cut short")
    if not lines:
        raise ValueError(f"{path}: empty")
    run, *cells = [_parse(line, f"{path}: line {number}") for number, line in enumerate(lines, start=1)]
    if not isinstance(run, Run) or any(isinstance(cell, Run) for cell in cells):
        raise ValueError(f"{path}: must hold one line of kind run, the first")
    return Results(run, cells, path)


def _parse(line: str, where: str) -> Any:
    try:
        table = json.loads(line)
    except ValueError as error:
        raise ValueError(f"{where} is no JSON: {error}") from None
    if not isinstance(table, dict) or table.get("schema") != SCHEMA:
        schema = table.get("schema") if isinstance(table, dict) else None
        raise ValueError(f"{where} is of schema {schema!r}, this version reads {SCHEMA!r}")
    if table.get("kind") not in KINDS:
        raise ValueError(f"{where}: kind must be one of {', '.join(KINDS)}, not {table.get('kind')!r}")
    kind = KINDS[table["kind"]]
    values = {name: value for name, value in table.items() if name not in ("schema", "kind")}
    wanted = {field.name for field in fields(kind)}
    if wrong := sorted(wanted ^ set(values)):
        raise ValueError(f"{where}: {'unknown' if wrong[0] in values else 'missing'} field {wrong[0]}")
    for name, hint in get_type_hints(kind).items():
        if not _is(values[name], hint):
            raise ValueError(f"{where}: {name} has the wrong type, {values[name]!r:.40}")
    return kind(**values)


def _is(value: Any, hint: Any) -> bool:
    origin, parts = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return any(_is(value, part) for part in parts)
    if origin is list:
        return isinstance(value, list) and all(_is(item, parts[0]) for item in value)
    if origin is dict:
        return isinstance(value, dict) and all(_is(item, parts[1]) for item in value.values())
    if hint is float:
        return type(value) in (int, float)
    return type(value) is (type(None) if hint is type(None) else hint)

"""Tables: one list of columns for each kind of record, shown by the terminal and by Markdown alike."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from rich import box, table
from rich.text import Text

from octavo.bench.peers.formats import SAME_SIZE
from octavo.bench.reporting.columns import CHECK, MARKS, Column, Table, place, words
from octavo.bench.reporting.figures import milliseconds, noise, number, percent, times
from octavo.bench.reporting.records import latest
from octavo.bench.reporting.schema import Decode, Host, Measured, Memory, Op, Perplexity, Run, Scenario, Serve

TARGETS = {1: (60, 30), 64: (150, 80), 256: (400, 200)}  # microseconds of a host's step: wanted, and hoped for
LLAMACPP = "llama.cpp"
ROOM = 175  # a narrower terminal goes without the minor columns


def table_of(records: Sequence[Any]) -> Table:
    """The table of records of one kind, of which there is at least one."""
    shown = latest(records)
    return TABLES[type(shown[0])](shown)


def decode_table(records: Sequence[Decode]) -> Table:
    """Grouped by batch and context, contenders in the order they ran."""
    base, records = baseline(records), sorted(records, key=lambda record: (record.batch, record.context))
    columns = [
        place("batch x context", lambda record: f"{record.batch} x {record.context}"),
        words("contender", lambda record: record.contender),
        words("dtype", lambda record: record.dtype),
        CHECK,
        Column("prefill tok/s", lambda record: number(record.prefill_tokens_per_s)),
        Column("of matmul", lambda record: percent(record.prefill_compute_share), is_minor=True),
        Column("TTFT ms", lambda record: milliseconds(record.ttft_median_s) + noise(record.ttft_spread)),
        Column("TPOT ms", lambda record: milliseconds(record.tpot_median_s) + noise(record.tpot_spread)),
        Column("p90", lambda record: milliseconds(record.tpot_p90_s), is_minor=True),
        Column("p99", lambda record: milliseconds(record.tpot_p99_s), is_minor=True),
        Column("decode tok/s", lambda record: number(record.decode_tokens_per_s)),
        Column(f"x {base}", lambda record: times(record.decode_tokens_per_s, baseline_rate(records, record))),
        *_beside_llamacpp(records),
        Column("of bandw.", lambda record: percent(record.bandwidth_share)),
        Column("memory MB", lambda record: number(record.peak_memory_bytes, 1e-6), is_minor=True),
    ]
    legend = (
        "check: = the reference's greedy tokens; ≈ tokens that differ by rounding only; ≠ quantised, so other tokens; "
        "✗ wrong or failed; - not supported. ~ the middle four fifths spread over more than a quarter of the median. "
        f"of matmul: FLOPs of the prefill, of the measured rate. x {base}: its speed in the same dtype is 1. "
        f"{'prefill, decode: x llama.cpp in the same format. ' if _has_llamacpp(records) else ''}"
        "of bandw.: bytes of weights and cache that a step must read, of the measured bandwidth."
    )
    return Table(model(records), legend, columns, records)


def _has_llamacpp(records: Sequence[Decode]) -> bool:
    return any(record.passed and _is_llamacpp(record) for record in records)


def _is_llamacpp(record: Any) -> bool:
    return bool(record.contender.partition(":")[0] == LLAMACPP)


def llamacpps(records: Sequence[Any], record: Any) -> Any:
    """llama.cpp's line at the same place in the same format; None where there is none."""
    wanted = SAME_SIZE.get(record.dtype, record.dtype), record.place
    return next((r for r in records if r.passed and _is_llamacpp(r) and (r.dtype, r.place) == wanted), None)


def _beside_llamacpp(records: Sequence[Decode]) -> list[Column]:
    """Speeds as multiples of llama.cpp's at the same place in the same format, where it ran."""

    def ratio(figure: str, record: Decode) -> str:
        return times(getattr(record, figure), getattr(llamacpps(records, record), figure, None))

    figures = {"prefill": "prefill_tokens_per_s", "decode": "decode_tokens_per_s"}
    names = figures if _has_llamacpp(records) else ()
    return [Column(f"{name} x {LLAMACPP}", partial(ratio, figures[name])) for name in names]


def op_table(records: Sequence[Op]) -> Table:
    columns = [
        place("op", lambda record: record.op),
        place("shape", lambda record: record.shape),
        words("backend", lambda record: record.backend),
        words("dtype", lambda record: record.dtype),
        CHECK,
        Column("median us", lambda record: number(record.median_s, 1e6)),
        Column("p10", lambda record: number(record.p10_s, 1e6)),
        Column("p90", lambda record: number(record.p90_s, 1e6)),
        Column("GB/s", lambda record: number(record.bytes_per_s, 1e-9)),
        Column("of bandw.", lambda record: percent(record.bandwidth_share)),
        Column("GFLOP/s", lambda record: number(record.flops_per_s or None, 1e-9)),
        Column("of matmul", lambda record: percent(record.compute_share)),
    ]
    legend = (
        "check: = the reference's bits; ≈ within four times its error; ✗ wrong or failed. of bandw., of matmul: bytes "
        "and FLOPs that the op needs, of the measured rates."
    )
    return Table("each op by itself, caches cold", legend, columns, records)


def host_table(records: Sequence[Host]) -> Table:
    columns = [
        place("sequences", lambda record: str(record.num_seqs)),
        words("context", lambda record: str(record.context)),
        *([words("tokens drawn", lambda record: record.way)] if any(each.way != "fused" for each in records) else []),
        Column("median us", lambda record: f"{record.median_s * 1e6:.0f}"),
        Column("p90 us", lambda record: f"{record.p90_s * 1e6:.0f}"),
        Column("wanted us", lambda record: str(_targets(record)[0])),
        Column("hoped for us", lambda record: str(_targets(record)[1])),
        Column("bytes a waiting request", lambda record: f"{record.bytes_per_waiting:,}"),
    ]
    return Table("host cost of a step, one thread", "", columns, records)


def _targets(record: Host) -> tuple[Any, Any]:
    return TARGETS.get(record.num_seqs, ("--", "--")) if record.way == "fused" else ("--", "--")


def serve_table(records: Sequence[Serve]) -> Table:
    one = records[0]
    columns = [
        words("load", lambda record: record.place),
        CHECK,
        Column("requests/s", lambda record: number(record.requests_per_s)),
        Column("tokens/s", lambda record: number(record.output_tokens_per_s)),
        Column("TTFT ms", lambda record: milliseconds(record.ttft_median_s)),
        Column("TTFT p90", lambda record: milliseconds(record.ttft_p90_s)),
        Column("TTFT p99", lambda record: milliseconds(record.ttft_p99_s)),
        Column("ITL ms", lambda record: milliseconds(record.itl_median_s)),
        Column("ITL p90", lambda record: milliseconds(record.itl_p90_s)),
        Column("ITL p99", lambda record: milliseconds(record.itl_p99_s)),
        Column("good", lambda record: f"{record.num_good} of {record.num_requests}"),
        Column("goodput/s", lambda record: number(record.goodput_per_s)),
    ]
    bound = next((record for record in records if record.ttft_bound_s), one)
    legend = (
        "check: = the requests that are also run alone said the same under load; ≈ they differ by rounding only; "
        f"✗ wrong. ITL: between one token and the next. good: requests with TTFT up to "
        f"{milliseconds(bound.ttft_bound_s)} ms and a mean ITL up to {milliseconds(bound.tpot_bound_s)} ms."
    )
    title = f"{model(records)}, {one.who}: {one.num_requests} requests, lengths {one.mix}"
    return Table(title, legend, columns, records)


def engine_table(records: Sequence[Scenario]) -> Table:
    """Both ways of each scene; the way named first is the slower one."""

    def scene(record: Scenario) -> tuple[Any, ...]:
        return record.who, record.scene, record.num_requests

    slow = {scene(record): record.median_s for record in reversed(records)}
    columns = [
        place("scene", lambda record: record.scene),
        place("requests", lambda record: str(record.num_requests)),
        words("way", lambda record: record.way),
        CHECK,
        Column("prompt tokens", lambda record: f"{record.prompt_tokens:,}"),
        Column("computed", lambda record: f"{record.computed_tokens:,}"),
        Column("new tokens", lambda record: f"{record.new_tokens:,}"),
        Column("seconds", lambda record: number(record.median_s) + noise(record.spread)),
        Column("tokens/s", lambda record: number(record.tokens_per_s)),
        Column("times faster", lambda record: times(slow[scene(record)], record.median_s)),
    ]
    legend = (
        "check: = both ways said the same tokens; ≈ they differ by rounding only; ✗ wrong. computed: prompt tokens "
        "that were prefilled. seconds: until the last request ended, a median; ~ the repeats spread over a quarter."
    )
    return Table(f"{model(records)}, {records[0].who}", legend, columns, records)


def perplexity_table(records: Sequence[Perplexity]) -> Table:
    one = records[0]

    def change(record: Perplexity) -> str:
        other = llamacpps(records, record)
        return "-" if other is None or other is record else f"{100 * (record.perplexity / other.perplexity - 1):+.2f} %"

    columns = [
        words("contender", lambda record: record.contender),
        words("weights", lambda record: record.dtype),
        CHECK,
        Column("bits a weight", lambda record: number(record.weight_bits)),
        Column("perplexity", lambda record: f"{record.perplexity:.3f}"),
        Column(f"beside {LLAMACPP}", change),
    ]
    legend = (
        f"check: = the model's own weights; ≠ quantised. beside {LLAMACPP}: the difference from its figure in the same "
        "format, of which less is better."
    )
    return Table(
        f"{one.model}: {one.num_tokens:,} tokens of {one.text}, {one.window} at once", legend, columns, records
    )


def memory_table(records: Sequence[Memory]) -> Table:
    def megabytes(name: str, field: str) -> Column:
        return Column(name, lambda record: number(getattr(record, field), 1e-6))

    def times_weights(field: str) -> Column:
        return Column("x weights", lambda record: times(getattr(record, field), record.weights_bytes))

    grown = [megabytes("grown MB", "grown_bytes")] if any(record.grown_bytes is not None for record in records) else []
    columns = [
        words("contender", lambda record: record.contender),
        words("weights", lambda record: record.dtype),
        CHECK,
        megabytes("weights MB", "weights_bytes"),
        Column("load s", lambda record: number(record.load_s)),
        megabytes("loading MB", "load_peak_bytes"),
        times_weights("load_peak_bytes"),
        megabytes("loaded MB", "loaded_bytes"),
        megabytes("answering MB", "peak_bytes"),
        megabytes("resident MB", "resident_bytes"),
        times_weights("resident_bytes"),
        *grown,
    ]
    legend = (
        "Each in a process of its own, beyond what that held before. check: = the model's own weights; ≠ quantised. "
        "weights: bytes that a step reads. loading, answering: the most that was held. loaded, resident: what was kept "
        "after it. grown: kept from the tenth length of a prompt to the last."
    )
    return Table(f"{model(records)}: memory", legend, columns, records)


TABLES: dict[type, Callable[[Sequence[Any]], Table]] = {
    Decode: decode_table, Op: op_table, Host: host_table, Serve: serve_table, Scenario: engine_table,
    Perplexity: perplexity_table, Memory: memory_table,
}  # fmt: skip


def model(records: Sequence[Any]) -> str:
    names = {f"{record.model} (random weights)" if record.dummy else record.model for record in records}
    return ", ".join(sorted(names))


def baseline(records: Sequence[Decode]) -> str:
    """The contender that all are compared with: transformers where it ran, else the reference."""
    ran = {record.contender for record in records if record.passed}
    return "transformers" if "transformers" in ran else "octavo:reference"


def baseline_rate(records: Sequence[Decode], record: Decode) -> float | None:
    """The baseline's tokens/s at the same batch and context, in the same dtype."""
    wanted = baseline(records), record.dtype, record.place
    rates = [r.decode_tokens_per_s for r in records if r.passed and (r.contender, r.dtype, r.place) == wanted]
    return rates[0] if rates else None


def terminal(records: Sequence[Any], width: int) -> table.Table | str:
    """The table as a terminal of that many columns shows it."""
    if not records:
        return "nothing was measured"
    shown = table_of(records)
    made = table.Table(
        caption=shown.caption, caption_justify="left", header_style="bold", box=box.SIMPLE_HEAD, pad_edge=False,
        collapse_padding=True,
    )  # fmt: skip
    kept = [width >= ROOM or not column.is_minor for column in shown.columns]
    for column, is_kept in zip(shown.columns, kept, strict=True):
        if is_kept:
            heading = "\n".join(column.name.rsplit(" ", 1))
            made.add_column(heading, justify="right" if column.is_figure else "left", no_wrap=True)
    for row in shown.sparse_rows():
        if row[0] and shown.columns[0].is_place:
            made.add_section()
        made.add_row(*(cell for cell, is_kept in zip(row, kept, strict=True) if is_kept))
    return made


def line(record: Measured) -> Text:
    """One record in one line, its most important figures; none unless its check passed."""
    start = f"{MARKS[record.verdict]} {record.who:<32} {record.place:<28}"
    if not record.passed:
        style = "dim" if record.verdict == "unsupported" else "red"
        return Text(f"{start} {record.verdict}: {record.detail}", style=style)
    return Text.assemble(start, *HEADLINES[type(record)](record))


def _decode_headline(record: Decode) -> Sequence[Any]:
    step, first = milliseconds(record.tpot_median_s), milliseconds(record.ttft_median_s)
    speed = f"{record.decode_tokens_per_s:9.1f} tokens/s"
    return (speed, "bold"), f"  step {step} ms{noise(record.tpot_spread)}  first token {first} ms"


def _serve_headline(record: Serve) -> Sequence[Any]:
    first, gap = milliseconds(record.ttft_median_s), milliseconds(record.itl_median_s)
    good = f"{record.num_good} of {record.num_requests} in bounds"
    speed = f"{number(record.output_tokens_per_s):>9} tokens/s"
    return (speed, "bold"), f"  first token {first} ms  between tokens {gap} ms  {good}"


def _perplexity_headline(record: Perplexity) -> Sequence[Any]:
    return ((f"{record.perplexity:9.3f} perplexity", "bold"),)


def _memory_headline(record: Memory) -> Sequence[Any]:
    loading, kept = number(record.load_peak_bytes, 1e-6), number(record.resident_bytes, 1e-6)
    return ((f"{kept:>9} MB resident", "bold"), f"  {loading} MB while loading")


HEADLINES: dict[type, Callable[[Any], Sequence[Any]]] = {
    Decode: _decode_headline, Serve: _serve_headline, Perplexity: _perplexity_headline,
    Memory: _memory_headline,
}  # fmt: skip


def header(run: Run) -> list[str]:
    """The machine and what it can do, the software and the moment; a sentence where others were at work as well."""
    rates = "".join(f", {name} matmul {rate / 1e12:.3g} TFLOP/s" for name, rate in run.matmul_flops_per_s.items())
    versions = ", ".join(f"{name} {version}" for name, version in run.versions.items())
    lines = [
        f"{run.machine}, {run.threads} threads, bandwidth {run.bandwidth / 1e9:.3g} GB/s{rates} (measured)."
        + (f" Driver {run.driver}." if run.driver else ""),
        f"{versions}; {commit(run)}; {run.date[:10]}; seed {run.seed}.",
    ]
    if run.neighbours:
        lines.append(f"Beside {run.neighbours} other program{'s' * (run.neighbours > 1)} that kept a core busy each.")
    if run.load is not None and run.load >= 0.25 * run.num_cores:
        lines.append(
            f"The machine was busy when the run began ({run.load:g} of {run.num_cores} cores): times are too long."
        )
    return lines


def commit(run: Run) -> str:
    return f"commit {run.commit[:10]}{' with changes' if run.dirty else ''}" if run.commit else "no commit"

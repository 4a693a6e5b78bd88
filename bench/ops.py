"""Measures each op of a model on each backend, PyTorch's own beside them, caches cold.

An op is timed only if its result is right: within four times the error of plain PyTorch in the same dtype.
"""

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from itertools import product
from typing import Any

import torch
from rich.console import Console

from octavo.bench import options
from octavo.bench.measuring.accuracy import judge
from octavo.bench.measuring.op_cases import Arguments, Case, Shapes, distinct_cases
from octavo.bench.measuring.timing import measure, median
from octavo.bench.measuring.workloads import at_least
from octavo.bench.peers.kernels import PEER_OPS
from octavo.bench.peers.sources import open_source
from octavo.bench.reporting.schema import Op
from octavo.bench.run import ResultLog, reason, run_command
from octavo.gpt.loading.loader import DTYPES
from octavo.kernels.ops import REFERENCE, Ops
from octavo.kernels.testing.case import WITH_WEIGHT

EXAMPLE = "python -m octavo.bench ops --model dummy:gpt2 --only paged_attention,linear"
SECONDS = {"cpu": 0.15, "cuda": 0.05}  # timed for each op, at least
SIZES = {  # sequences, context, tokens of a prefill
    "cpu": ((8,), (512,), (512,)),
    "cuda": ((1, 16, 64, 256), (1024, 4096), (512, 1024, 4096)),
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default="smollm2", help="whose shapes (smollm2)")
    parser.add_argument("--backend", default="auto,reference", metavar="NAME,...", help="as in decode (auto,reference)")
    parser.add_argument("--dtype", default="auto", metavar="NAME,...", help="auto, float32, bfloat16, float16 (auto)")
    parser.add_argument("--batch", metavar="N,...", help="sequences in decode (8, on a GPU 1,16,64,256)")
    parser.add_argument("--context", metavar="N,...", help="cached tokens in decode (512, on a GPU 1024,4096)")
    parser.add_argument("--prefill", metavar="N,...", help="tokens in prefill (512, on a GPU 512,1024,4096)")
    parser.add_argument("--only", metavar="OP,...", help="these ops")
    options.add_machine(parser)


def run(arguments: argparse.Namespace, console: Console) -> int:
    """kernel by kernel, on the backends that run here"""
    device = options.device_of(arguments)
    backends, dtypes = options.backends(arguments.backend, device), options.dtypes(arguments.dtype, device)
    wanted = [(dtype, case) for dtype in dtypes for case in _cases(arguments, device, dtype)]

    def work(log: ResultLog) -> None:
        with log.progress() as bar, torch.inference_mode():
            for dtype, case in bar.track(wanted, description=""):
                measure_case(case, dtype, device, backends, log)

    return run_command("ops", arguments, console, device, len(wanted), work, dtypes)


def _cases(arguments: argparse.Namespace, device: torch.device, dtype: str) -> list[Case]:
    given = {name: getattr(arguments, name) for name in ("batch", "context", "prefill")}
    sizes = [
        usual if text is None else options.numbers(text, name)
        for (name, text), usual in zip(given.items(), SIZES[device.type], strict=True)
    ]
    at_least(1, **{name: min(values) for name, values in zip(given, sizes, strict=True)})
    config, kind = open_source(arguments.model).config, DTYPES[dtype]
    found = distinct_cases(
        Shapes(config, device, kind, batch, context, prefill, arguments.seed)
        for batch, context, prefill in product(*sizes)
    )
    if arguments.only is None:
        return found
    names, known = options.words(arguments.only, "only"), list(dict.fromkeys(case.op for case in found))
    if unknown := [name for name in names if name not in known]:
        raise ValueError(f"unknown op {unknown[0]!r}: this model has {', '.join(known)}")
    return [case for case in found if case.op in names]


def measure_case(case: Case, dtype: str, device: torch.device, backends: Sequence[Ops], log: ResultLog) -> None:
    """Measure the case on every backend and peer that has it, unless that is done."""
    arguments = case.make()
    calls = {
        ops.name: ready(ops, case, arguments)
        for ops in backends
        if ops.name == "reference" or getattr(ops, case.op) is not getattr(REFERENCE, case.op)
    }
    for name, prepare in PEER_OPS.items():
        if (prepared := prepare(case, arguments)) is not None:
            calls[name] = partial(_ignoring, prepared)
    for name, call in calls.items():
        if not log.has((case.op, case.shape, name, dtype)):
            status, detail, samples = _timed(case, call, arguments, device)
            middle, rate = median(samples) if samples else None, log.run.matmul_flops_per_s.get(dtype)
            record = Op(
                case.op, case.shape, name, dtype, status, detail, [round(sample, 9) for sample in samples],
                case.num_bytes, case.num_flops,
                bandwidth_share=middle and case.num_bytes / middle / log.run.bandwidth,
                compute_share=case.num_flops / middle / rate if middle and rate and case.num_flops else None,
            )  # fmt: skip
            log.keep(record)


def _timed(
    case: Case, call: Callable[..., Any], arguments: Arguments, device: torch.device
) -> tuple[str, str, list[float]]:
    """The verdict, its detail, and the seconds of each call where it is right."""
    try:
        status, detail = judge(case, call, getattr(REFERENCE, case.op), arguments)
        if status == "wrong":
            return status, detail, []
        return status, detail, measure(partial(call, *arguments), device, SECONDS[device.type])
    except Exception as error:
        return "failed", reason(error), []


def ready(ops: Ops, case: Case, arguments: Arguments) -> Callable[..., Any]:
    """The backend's op, to be called with these arguments: it has their weight in its own form already."""
    call = getattr(ops, case.op)
    if case.op not in WITH_WEIGHT:
        return call
    packed = ops.pack(arguments[1])
    return lambda x, _, *rest: call(x, packed, *rest)


def _ignoring(prepared: Callable[[], Any], *_: Any) -> Any:
    return prepared()

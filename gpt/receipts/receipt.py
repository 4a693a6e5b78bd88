"""A receipt: all that a request's output follows from, and the output, as data for JSON; and its way back.

Tokens are told as they are, log-probabilities by a hash for each token, so that a replay finds the first that differs.
"""

import math
import platform
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from hashlib import blake2b
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from octavo.gpt.outputs import CompletionOutput, Logprob, RequestOutput, raise_if_failed
from octavo.gpt.quoting import quoted
from octavo.gpt.receipts.weights_hash import weights_hash
from octavo.gpt.sampling_params import SamplingParams
from octavo.gpt.structured.params import StructuredOutputsParams
from octavo.kernels.weights import BLOCK_FORMATS

KIND = 1  # of a receipt's layout
PACKAGES = "octavo", "torch", "numba", "llvmlite", "triton"
DEFAULT = SamplingParams()
Entries = Mapping[int, Logprob] | None


def receipt(request: RequestOutput) -> dict[str, Any]:
    """Return the receipt of a request that ended; see `RequestOutput.receipt`."""
    llm = None if request.origin is None else request.origin.owner()
    if request.origin is None or llm is None:
        raise ValueError("receipt: the LLM that made this output is gone: ask while it is in use")
    raise_if_failed(request)
    if not request.finished or any(output.finish_reason == "abort" for output in request.outputs):
        raise ValueError("receipt: the request has not come to its end")
    if request.origin.adapter:
        raise ValueError("receipt: the request has an adapter, and receipts tell of the model's own weights alone")
    params = request.origin.params.replace(
        seed=request.origin.seed, logprobs_mode=request.origin.params.logprobs_mode or llm.config.logprobs_mode
    )
    return {
        "receipt": KIND,
        "model": {
            "model": str(llm.name),
            "backend": llm.backend,
            "dtype": str(llm.dtype).removeprefix("torch."),
            "weights": _weights(llm),
            "device": llm.device.type,
            "max_model_len": llm.config.max_model_len,
        },
        "weights_hash": llm.thread.call(weights_hash, llm.engine, request.metrics.last_token_ts),
        **surroundings(llm.device),
        "prompt_token_ids": list(request.prompt_token_ids),
        "params": _as_data(params),
        **outcome(request),
    }


def surroundings(device: torch.device) -> dict[str, Any]:
    """What a replay may find changed: versions of packages, and the machine as far as its arithmetic goes."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    on_cuda = device.type == "cuda"
    chip = torch.cuda.get_device_name(device) if on_cuda else torch.backends.cpu.get_cpu_capability()
    return {"versions": found, "machine": f"{platform.machine()} {chip}"}


def outcome(request: RequestOutput) -> dict[str, Any]:
    """The part of a receipt that a replay has to find equal."""
    prompt = request.prompt_logprobs
    return {
        "prompt_logprob_hashes": None if prompt is None else _hashes(prompt),
        "outputs": [_completion(output) for output in request.outputs],
    }


@dataclass(frozen=True)
class Asked:
    """What a receipt says of how to repeat the request."""

    model: dict[str, Any]  # arguments of LLM
    prompt_token_ids: list[int]
    params: SamplingParams


def asked(data: Mapping[str, Any]) -> Asked:
    """Read a receipt; ValueError says what is none of its, or wrong."""
    if data.get("receipt") != KIND:
        raise ValueError(f"receipt is {quoted(data.get('receipt'))}, this version reads {KIND}")
    _require(data, {"model": dict, "weights_hash": str, "versions": dict, "machine": str, "params": dict})
    _require(data, {"prompt_token_ids": list, "outputs": list})
    names = {"model": str, "backend": str, "dtype": str, "weights": str, "device": str, "max_model_len": int}
    _require(data["model"], names)
    for output in data["outputs"]:
        if not isinstance(output, dict):
            raise ValueError("outputs must be a list of objects")
        _require(output, {"token_ids": list, "finish_reason": str})
    known = {each.name for each in fields(SamplingParams)}
    if unknown := [name for name in data["params"] if name not in known]:
        raise ValueError(f"params has no field {quoted(unknown[0])}")
    params = dict(data["params"])
    if isinstance(bias := params.get("logit_bias"), dict):
        params["logit_bias"] = {int(i): float(value) for i, value in bias.items()}
    return Asked({name: data["model"][name] for name in names}, data["prompt_token_ids"], SamplingParams(**params))


def _require(data: Mapping[str, Any], kinds: Mapping[str, type]) -> None:
    for name, kind in kinds.items():
        if not isinstance(data.get(name), kind):
            raise ValueError(f"{name} must be a {kind.__name__}, not {quoted(data.get(name))}")


def _weights(llm: Any) -> str:
    """The word for `weights` that loads what the LLM has."""
    keeps_blocks = not BLOCK_FORMATS.keys().isdisjoint(llm.model.formats())
    return llm.model.format or ("file" if keeps_blocks else "dense")


def _as_data(params: SamplingParams) -> dict[str, Any]:
    """The fields that differ from the defaults; ValueError for one that JSON cannot hold."""
    changed = {
        each.name: value
        for each in fields(params)
        if (value := getattr(params, each.name)) != getattr(DEFAULT, each.name)
    }
    return {name: _plain(name, value) for name, value in changed.items()}


def _plain(name: str, value: Any) -> Any:
    if isinstance(value, StructuredOutputsParams):
        return {key: _plain(name, item) for key, item in vars(value).items() if item}
    if isinstance(value, Mapping):
        return {str(key): _plain(name, item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(name, item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return repr(value)  # a text, since JSON has no infinity
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise ValueError(f"receipt: {name} is a {type(value).__name__}, which no receipt can hold")


def _completion(output: CompletionOutput) -> dict[str, Any]:
    return {
        "token_ids": list(output.token_ids),
        "finish_reason": output.finish_reason,
        "logprob_hashes": None if output.logprobs is None else _hashes(output.logprobs),
    }


def _hashes(steps: Sequence[Entries]) -> list[str | None]:
    return [None if entries is None else _hash(entries) for entries in steps]


def _hash(entries: Mapping[int, Logprob]) -> str:
    """The hash of what was reported of one token: ids, ranks and the bits of log-probabilities."""
    packed = (struct.pack("<iif", i, entry.rank, entry.logprob) for i, entry in sorted(entries.items()))
    return blake2b(b"".join(packed), digest_size=4).hexdigest()

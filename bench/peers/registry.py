"""The peers: each optional, each used as its own users use it, on the same weights and token ids."""

from collections.abc import Mapping
from importlib import import_module
from importlib.util import find_spec
from types import MappingProxyType
from typing import Any, NamedTuple

from octavo.bench.peers import formats
from octavo.bench.peers.base import Contender, RunSettings


class Peer(NamedTuple):
    """A peer: the package it needs, how to get it, and where its contender is made."""

    module: str
    install: str
    distribution: str
    adapter: str  # `module.function` of octavo.bench.peers: given settings and variant, it makes the contender
    variants: tuple[str, ...] = ()  # further ways to run it: `name:variant`
    formats: Mapping[str, str] = MappingProxyType({})  # of weights in a run -> the variant that stands beside ours
    prepare: str = ""  # like adapter, called before it outside all timing: makes files that later runs find
    dense: bool = True  # whether it also runs the weights in a dtype of a run
    device: str = ""  # the only kind that it runs on here
    disturbs: bool = False  # its threads do not sleep: open but idle, it slows others on a CPU


PEERS = {
    "transformers": Peer(
        "transformers", "pip install 'transformers>=5.0' accelerate", "transformers", "hf_transformers.open_peer",
        ("static", "compile", "continuous"),
    ),
    "llama.cpp": Peer(
        "llama_cpp", "pip install llama-cpp-python", "llama-cpp-python", "llamacpp.LlamaCpp",
        ("f16", "q8_0", "q4_0", "q4_1", "q4_k_m", "q5_k_m", "q6_k", "file"),
        {name: name for name in formats.FORMATS}, prepare="llamacpp.prepare",
    ),
    "ctranslate2": Peer(
        "ctranslate2", "pip install ctranslate2", "ctranslate2", "ct2.CTranslate2", ("int8",),
        {"q8_0": "int8"},
        disturbs=True,
    ),
    "openvino": Peer(
        "openvino_genai", "pip install openvino-genai", "openvino-genai", "openvino.OpenVino", (formats.FILE,),
        {formats.FILE: formats.FILE}, dense=False, device="cpu",
    ),
    "vllm": Peer("vllm", "pip install vllm", "vllm", "servers.VLLM", device="cuda"),
    "sglang": Peer("sglang", "pip install sglang", "sglang", "servers.SGLang", device="cuda"),
}  # fmt: skip

DEVICES = {"cpu": "a CPU", "cuda": "a CUDA device"}


def check_name(name: str) -> None:
    """ValueError unless it is a peer, or a peer's variant."""
    base, _, variant = name.partition(":")
    if base not in PEERS:
        raise ValueError(f"unknown peer {name!r}: peers are {', '.join(PEERS)}, installed or none")
    if variant and variant not in PEERS[base].variants:
        known = ", ".join(f"{base}:{each}" for each in PEERS[base].variants) or "no variant"
        raise ValueError(f"unknown peer {name!r}: {base} has {known}")


def missing(name: str, device_type: str) -> str | None:
    """Why a peer cannot run here, in one line; None where it can."""
    base = name.partition(":")[0]
    peer = PEERS[base]
    if find_spec(peer.module) is None:
        return f"{base} is not installed: {peer.install}"
    if peer.device not in ("", device_type):
        return f"{base} runs on {DEVICES[peer.device]} here"
    return None


def has_own_format(name: str) -> bool:
    """Whether the peer's weights are in a format of its own, the same in every dtype of a run."""
    return name.partition(":")[2] in (*formats.FORMATS, "f16")


def dtype_of(name: str, dtype: str) -> str:
    """The dtype or format that a contender of that name runs in, asked for with a run's dtype."""
    return name.partition(":")[2] if has_own_format(name) else dtype


def disturbs(name: str) -> bool:
    """Whether nothing else should be measured while the peer is open."""
    return PEERS[name.partition(":")[0]].disturbs


def in_precision(name: str, precision: str) -> str | None:
    """The name of the peer, or of its variant, in a run's dtype or format of weights; None where there is none."""
    if precision not in formats.FORMATS:
        return name if ":" in name or PEERS[name].dense else None
    if has_own_format(name):
        return name
    peer = PEERS.get(name)  # none for a variant
    return f"{name}:{peer.formats[precision]}" if peer and precision in peer.formats else None


def installed(device_type: str) -> list[str]:
    return [name for name in PEERS if missing(name, device_type) is None]


def prepare(name: str, settings: RunSettings) -> None:
    """Make the files that the peer reads, where it needs any; ValueError where they cannot be made."""
    base, _, variant = name.partition(":")
    if PEERS[base].prepare:
        _function(PEERS[base].prepare)(settings, variant)


def open_peer(name: str, settings: RunSettings) -> Contender:
    """The peer with the run's weights loaded; ValueError where it cannot take them."""
    base, _, variant = name.partition(":")
    contender: Contender = _function(PEERS[base].adapter)(settings, variant)
    contender.name = name
    return contender


def load(name: str) -> None:
    """Import what the peer needs."""
    _function(PEERS[name.partition(":")[0]].adapter)


def _function(place: str) -> Any:
    module, function = place.split(".")
    return getattr(import_module(f"octavo.bench.peers.{module}"), function)

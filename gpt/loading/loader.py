"""A model's name -> a model with weights, in the dtype and on the device that were asked for.

The network is built without memory, every tensor of the checkpoint is checked against it, and only then parameters
are made and filled a few rows at a time: no weight is ever held twice, whatever its type on disk.
"""

import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from octavo.gpt.loading import hub
from octavo.gpt.loading.checkpoint import Checkpoint, Slice, unread
from octavo.gpt.loading.files import is_folder, is_there
from octavo.gpt.loading.gguf import open_gguf_checkpoint
from octavo.gpt.loading.gguf_file import open_gguf
from octavo.gpt.loading.hf import open_folder
from octavo.gpt.loading.huggingface.choice import Wanted
from octavo.gpt.loading.huggingface.name import ALIASES
from octavo.gpt.loading.tensor_file import FLOATS
from octavo.gpt.models.base import Model, Packable, initialise
from octavo.gpt.models.config import ModelConfig
from octavo.gpt.models.registry import KNOWN_SHAPES, family_of
from octavo.gpt.quoting import one_line, quoted
from octavo.gpt.tokenizer import hf
from octavo.gpt.tokenizer.gguf import from_gguf_metadata
from octavo.gpt.tokenizer.ranks import gpt2
from octavo.gpt.tokenizer.tokenizer import Tokenizer
from octavo.kernels.ops import Ops
from octavo.kernels.weights import FORMATS

WEIGHTS = "auto", "file", "dense", *FORMATS

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

DUMMY = "dummy:"  # names of networks with random weights begin so

CHUNK = 2**20  # values read at once: they stay in the processor's cache while they are widened and copied


class LoadedModel(NamedTuple):
    model: Model
    tokenizer: Tokenizer | None  # None where the model comes without one
    name: str
    is_dummy: bool  # random weights
    dtype: torch.dtype  # of activations and cached values
    source: Path | None = None  # the folder or file that it was read from; None where the weights are random


def load_model(
    name: str | Path,
    ops: Ops,
    dtype: str = "auto",
    device: str = "auto",
    weights: str = "auto",
    tokenizer: str | Path | None = "auto",
) -> LoadedModel:
    """The model of that name, folder or GGUF file, ready to decode: packed for its backend, without gradients.

    dtype, of activations and cached values, is float32, bfloat16, float16, or auto: float32 where weights keep a
    file's blocks, so that answers are those of float32, else what the device is fast at. weights is a format of
    kernels/weights.py that the backend has a product for, dense for dtype's own, file for the blocks of a GGUF file as
    they are, or auto: file for a GGUF file where the backend prefers that, else dense. device is auto, cpu or cuda.
    tokenizer is auto for the model's own, another's name, or None to load a model for token ids alone, whatever its
    tokenizer. Names are those of `hub.resolve`, and `dummy:<shape>` for seeded random weights. ValueError or
    FileNotFoundError says what is wrong with an argument, or with which tensor of which file, before any memory is
    taken.
    """
    place = resolve_device(device)
    dtype, weights = resolve_weights(dtype, weights, ops)
    number_type = resolve_dtype(dtype, place)
    if str(name).startswith(DUMMY):
        _require_no_file(weights, str(name))
        _compile(ops, number_type, weights)
        model = _random(str(name), ops, number_type, place)
        chosen, source = _chosen(tokenizer, lambda: _dummy_tokenizer(str(name))), None
    else:
        source = hub.resolve(str(name))
        checkpoint, chosen = _open(source, tokenizer)
        if not checkpoint.keeps_blocks:
            _require_no_file(weights, str(source))
        keeps = checkpoint.keeps_blocks and (weights == "file" or (weights == "auto" and ops.keeps_blocks))
        if keeps and dtype == "auto":  # products with blocks see 15 bits of a float32, but 8 of a bfloat16
            number_type = torch.float32
        _compile(ops, number_type, "file" if keeps else weights)
        model = _read(checkpoint, ops, number_type, place, ops.formats if keeps else None)
    model.requires_grad_(False)
    model.eval()
    model.pack(weights if weights in FORMATS else None)
    return LoadedModel(model, chosen, str(name), source is None, number_type, source)


def resolve_weights(dtype: str, weights: str, ops: Ops) -> tuple[str, str]:
    """The dtype of activations and the word for weights; ValueError where the backend has no such products."""
    if "int8" in (dtype, weights):
        warnings.warn("int8 is now weights='q8_0' and will be refused", FutureWarning, stacklevel=3)
        dtype, weights = ("auto" if dtype == "int8" else dtype), "q8_0"
    if weights not in WEIGHTS:
        raise ValueError(f"weights must be {', '.join(WEIGHTS[:-1])} or {WEIGHTS[-1]}, not {quoted(weights)}")
    if (weights in FORMATS and weights not in ops.formats) or (weights == "file" and not ops.formats):
        raise ValueError(f"weights {weights} are not for backend {ops.name}, which takes dense ones: use backend cpu")
    return dtype, weights


def _compile(ops: Ops, dtype: torch.dtype, weights: str) -> None:
    """Start to compile what the model will need; the formats of a file's own blocks are not known yet."""
    if ops.compile is not None:
        ops.compile(dtype, {"file": None}.get(weights, weights if weights in FORMATS else str(dtype).partition(".")[2]))


def _require_no_file(weights: str, name: str) -> None:
    if weights == "file":
        raise ValueError(f"weights file is for GGUF files, {one_line(name, 80)} is none: use auto")


def load_tokenizer(name: str | Path) -> Tokenizer:
    """The tokenizer of a model, without its weights or configuration; ValueError where the model has none.

    Beside a model's name it takes a tokenizer's file alone: tokenizer.json, tekken.json, or a SentencePiece model.
    """
    if str(name).removeprefix(DUMMY) in ALIASES and not Path(name).exists():
        return gpt2(hub.gpt2_vocabulary())
    if str(name).startswith(DUMMY):
        known_shape(str(name))
        tokenizer = None
    else:
        tokenizer = _tokenizer_of(str(name))
    if tokenizer is None:
        raise ValueError(f"{one_line(str(name), 80)} comes without a tokenizer")
    return tokenizer


def _tokenizer_of(name: str) -> Tokenizer | None:
    path = Path(name).expanduser()
    if hf.is_tokenizer_file(path) and is_there(path) and not is_folder(path):
        return hf.from_file(path)
    source = hub.resolve(name, Wanted.TOKENIZER)
    if source.is_dir():
        return hf.from_folder(source)
    return from_gguf_metadata(open_gguf(source).metadata, str(source))


def resolve_device(device: str) -> torch.device:
    """cpu, cuda, or auto: cuda where PyTorch sees a GPU."""
    if device not in ("auto", "cpu", "cuda"):
        raise ValueError(f"device must be auto, cpu or cuda, not {quoted(device)}")
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device is cuda, but this PyTorch ({torch.__version__}) sees no GPU")
    return torch.device("cuda" if device != "cpu" and torch.cuda.is_available() else "cpu")


def resolve_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """float32, bfloat16, float16, or auto: bfloat16 where the device is fast at it, else float32."""
    if dtype in DTYPES:
        return DTYPES[dtype]
    if dtype != "auto":
        raise ValueError(f"dtype must be auto, {', '.join(DTYPES)}, not {quoted(dtype)}")
    if device.type == "cuda":
        return torch.bfloat16
    probes = (getattr(torch.cpu, f"_is_{name}_supported", None) for name in ("avx512_bf16", "amx_tile"))
    return torch.bfloat16 if any(probe is not None and probe() for probe in probes) else torch.float32


def _open(source: Path, tokenizer: str | Path | None) -> tuple[Checkpoint, Tokenizer | None]:
    if source.is_dir():
        return _joined(open_folder(source), _chosen(tokenizer, lambda: hf.from_folder(source)))
    checkpoint, metadata = open_gguf_checkpoint(source)
    return _joined(checkpoint, _chosen(tokenizer, lambda: from_gguf_metadata(metadata, str(source))))


def _chosen(tokenizer: str | Path | None, own: Callable[[], Tokenizer | None]) -> Tokenizer | None:
    """The tokenizer that `load_model` was asked for: none, the model's own, or another's."""
    if tokenizer is None:
        return None
    return own() if tokenizer == "auto" else load_tokenizer(tokenizer)


def _joined(checkpoint: Checkpoint, tokenizer: Tokenizer | None) -> tuple[Checkpoint, Tokenizer | None]:
    """Both, the tokenizer's end-of-text ids among those that end the model's requests: fine-tunes change only it."""
    config = checkpoint.config
    ends = (*config.eos_ids, *(tokenizer.eos_ids if tokenizer else ()))
    eos_ids = tuple(dict.fromkeys(token_id for token_id in ends if token_id < config.vocab_size))
    return replace(checkpoint, config=replace(config, eos_ids=eos_ids)), tokenizer


def _allocate(model: Model, dtype: torch.dtype, device: torch.device) -> None:
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            empty = torch.empty(parameter.shape, dtype=dtype, device=device)
            setattr(module, name, nn.Parameter(empty, requires_grad=False))


def _read(
    checkpoint: Checkpoint, ops: Ops, dtype: torch.dtype, device: torch.device, kept: frozenset[str] | None
) -> Model:
    """kept: the formats in which weights of products stay as the file has them; None: all become dense."""
    config, index_file = checkpoint.config, checkpoint.index_file
    if config.num_layers > len(checkpoint.tensors):
        raise ValueError(f"{index_file}: {config.num_layers} layers, but only {len(checkpoint.tensors)} tensors")
    try:
        model = family_of(config).empty(config, ops)
    except RuntimeError as error:  # sizes whose product no computer can count
        raise ValueError(f"{index_file}: impossible sizes in the configuration: {error}") from None
    plan = checkpoint.match(model)
    if checkpoint.quantised is not None:
        kind, wide = checkpoint.quantised, str(dtype).removeprefix("torch.")
        warnings.warn(f"{index_file}: {kind} weights are widened to {wide}, as are all activations", stacklevel=4)
    _allocate(model, dtype, device)  # no page of it is touched before it is filled
    if kept is not None:
        _keep_blocks(model, plan, dtype, kept)
    for name, parameter in model.named_parameters():
        for part in plan[name]:
            fill(parameter.data, part)
    model.make_buffers()
    return model


def _keep_blocks(model: Model, plan: dict[str, list[Slice]], dtype: torch.dtype, kept: frozenset[str]) -> None:
    """Pack the weights of products, and tables, out of the file as it has them."""
    widened = set()
    for name, module in list(model.named_modules()):
        if not isinstance(module, Packable) or not all(part.is_plain for part in plan[f"{name}.weight"]):
            continue
        slices = plan[f"{name}.weight"]
        widened |= {each.file.tensors[each.name].dtype_name for each in slices if not each.kind(kept)} - FLOATS.keys()
        module.pack(model.ops, unread(slices, module.weight.shape[1], kept, dtype))
    if widened:
        path, wide = next(iter(plan.values()))[0].file.path, str(dtype).removeprefix("torch.")
        warnings.warn(f"{path}: {', '.join(sorted(widened))} weights are widened to {wide}", stacklevel=5)


def fill(parameter: Tensor, part: Slice) -> None:
    """Copy a checkpoint's tensor into its rows of the parameter, some rows at a time."""
    target = parameter.narrow(0, part.first_row, part.num_rows)
    if part.group:
        target.unflatten(0, (3, -1, part.group)).copy_(
            part.file.read(part.name).unflatten(0, (-1, 3, part.group)).transpose(0, 1)
        )
        return
    if parameter.dim() == 1:
        values = part.file.read(part.name)
        target.copy_(values.float() + part.offset if part.offset else values)
        return
    target = target.T if part.transposed else target
    step = max(1, CHUNK // target.shape[1])
    for start in range(0, target.shape[0], step):
        stop = min(start + step, target.shape[0])
        target[start:stop].copy_(part.file.read(part.name, start, stop))


def _random(name: str, ops: Ops, dtype: torch.dtype, device: torch.device) -> Model:
    config = known_shape(name)
    model = family_of(config).empty(config, ops)
    _allocate(model, dtype, device)
    initialise(model, seed=0)
    return model


def known_shape(name: str) -> ModelConfig:
    """The shape that `dummy:<shape>` names; ValueError where there is none."""
    shape = name.removeprefix(DUMMY)
    if shape not in KNOWN_SHAPES:
        known = ", ".join(DUMMY + known for known in KNOWN_SHAPES)
        raise ValueError(f"unknown model {quoted(name)}: dummy models are {known}")
    return KNOWN_SHAPES[shape]


def _dummy_tokenizer(name: str) -> Tokenizer | None:
    """Plain GPT-2 BPE where the shape is GPT-2's and the vocabulary was fetched before."""
    cached = hub.cached_gpt2_vocabulary() if name.startswith(f"{DUMMY}gpt2") else None
    return gpt2(cached) if cached else None

"""Quantised checkpoints: what config.json says of the format, and its tensors as dense ones, widened as they are read.

Only weights are read so. What a format does to activations or to cached keys and values is refused where it is part of
the arithmetic that the checkpoint was made for (integers), and said where engines differ in it (FP8).
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from octavo.gpt.loading.layouts import AWQ, GPTQ, Layout, Packed, Scaled, Tensors
from octavo.gpt.loading.tensor_file import TensorFile, TensorInfo
from octavo.gpt.models.config_reader import ConfigReader
from octavo.gpt.quoting import one_line, quoted

Stored = Mapping[str, TensorFile]  # the file of every tensor

NAME = "quantization_config"
KINDS = ("scale", "zero_point", "scale_ub")
UNUSED = {  # leaves that serve quantised activations or a quantised cache
    f"{part}_{kind}" for part in ("input", "output", "q", "k", "v", "kv") for kind in KINDS
}


class Scheme(NamedTuple):
    """How a checkpoint is quantised."""

    label: str  # for messages
    layouts: tuple[Layout, ...]


def scheme_of(reader: ConfigReader) -> Scheme | None:
    """The scheme that config.json names, None for none; ValueError for what cannot be widened."""
    table = reader.get(NAME)
    if table is None:
        return None
    if not isinstance(table, dict):
        raise ValueError(f"{reader.path}: {NAME} must be an object, not {quoted(table)}")
    part = ConfigReader(reader.path, {f"{NAME}.{name}": value for name, value in table.items()}, f"{NAME}.")
    if part.get("quant_method") not in tuple(METHODS):
        known = ", ".join(METHODS)
        raise ValueError(
            f"{reader.path}: {NAME}.quant_method {quoted(part.get('quant_method'))} is not supported (only {known})"
        )
    return METHODS[part.get("quant_method")](part)


def widened(index_file: Path, scheme: Scheme, stored: Stored) -> dict[str, TensorFile]:
    """The same tensors, but every quantised module's as one dense `weight`; ValueError names one that is odd."""
    modules: dict[str, dict[str, TensorFile]] = {}
    for name, file in stored.items():
        module, _, leaf = name.rpartition(".")
        if leaf not in UNUSED:
            modules.setdefault(module, {})[leaf] = file
    plain: dict[str, TensorFile] = {}
    found: dict[str, _Module] = {}
    for name, files in modules.items():
        layout = next((layout for layout in scheme.layouts if all(mark in files for mark in layout.marks)), None)
        taken: Iterable[str] = layout.leaves if layout is not None else ()
        if layout is not None:
            found[f"{name}.weight"] = _module(name, layout, files)
        plain |= {f"{name}.{leaf}".lstrip("."): file for leaf, file in files.items() if leaf not in taken}
    for name in found.keys() & plain.keys():
        raise ValueError(f"{index_file}: tensor {one_line(name, 80)} is there twice, quantised and not")
    dense = Widened(index_file, {name: module.info for name, module in found.items()}, found)
    return plain | dict.fromkeys(found, dense)


@dataclass(frozen=True)
class _Module:
    """The tensors of a quantised module."""

    name: str
    layout: Layout
    files: Mapping[str, TensorFile]
    info: TensorInfo

    def tensors(self) -> Tensors:
        return {leaf: file.stored(f"{self.name}.{leaf}") for leaf, file in self.files.items()}


@dataclass(frozen=True)
class Widened(TensorFile):
    """Quantised weights as a file of dense ones: rows are decoded when they are read."""

    modules: Mapping[str, _Module]

    def reads(self, dtype_name: str) -> bool:
        return True

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Tensor:
        module = self.modules[name]
        try:
            return module.layout.rows(module.tensors(), start, module.info.shape[0] if stop is None else stop)
        except ValueError as error:
            raise ValueError(f"{self.path}: tensor {one_line(name, 80)} cannot be widened: {error}") from None


def _module(name: str, layout: Layout, files: Mapping[str, TensorFile]) -> _Module:
    """The module, once each of its tensors has the number type and the shape that the others ask for."""
    mine = {leaf: files[leaf] for leaf in layout.leaves if leaf in files}
    module = _Module(name, layout, mine, TensorInfo((), "", 0, 0))
    main = layout.marks[0]
    try:
        tensors = module.tensors()
        _require_leaves(layout, tensors)
        if tensors[main].dim() != 2:
            raise ValueError(f"{main} has {tensors[main].dim()} dimensions, not 2")
        shapes = layout.shapes(tensors)
        for leaf, tensor in tensors.items():
            if leaf in shapes and tuple(tensor.shape) != shapes[leaf]:
                raise ValueError(f"{leaf} is {list(tensor.shape)}, {main} asks for {list(shapes[leaf])}")
    except ValueError as error:
        raise ValueError(f"{mine[main].path}: module {one_line(name, 80)} cannot be widened: {error}") from None
    return _Module(name, layout, mine, TensorInfo(shapes[""], "", 0, 0))


def _require_leaves(layout: Layout, tensors: Tensors) -> None:
    for leaf, (dtypes, is_optional) in layout.leaves.items():
        if leaf not in tensors and not is_optional:
            raise ValueError(f"{leaf} is missing")
        if leaf in tensors and tensors[leaf].dtype not in dtypes:
            known = ", ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)
            raise ValueError(f"{leaf} is of type {str(tensors[leaf].dtype).removeprefix('torch.')}, not {known}")


def _gptq(reader: ConfigReader) -> Scheme:
    reader.require_one_of("bits", 4, 8, 2)
    reader.require_one_of("checkpoint_format", "gptq", "gptq_v2")
    reader.require_one_of("is_marlin_format", False)
    dynamic = reader.get("dynamic", {})
    if not isinstance(dynamic, dict) or any(not rule.startswith("-:") for rule in dynamic):
        raise ValueError(f"{reader.path}: {NAME}.dynamic gives modules other widths, which is not supported")
    bits, version = reader.count("bits"), reader.get("checkpoint_format", "gptq")
    layout = GPTQ(bits, _group_size(reader, "group_size"), zero_offset=1 if version == "gptq" else 0)
    return Scheme(f"GPTQ {bits}-bit", (layout,))


def _awq(reader: ConfigReader) -> Scheme:
    for name in ("bits", "w_bit"):
        reader.require_one_of(name, 4)
    reader.require_one_of("version", "gemm", "GEMM")
    reader.require_one_of("zero_point", True)
    name = "q_group_size" if reader.get("group_size") is None else "group_size"
    return Scheme("AWQ 4-bit", (AWQ(_group_size(reader, name)),))


def _group_size(reader: ConfigReader, name: str) -> int:
    """The inputs that share a scale, 0 for all."""
    return 0 if reader.get(name, 128) == -1 else reader.count(name, 128)


def _fp8(reader: ConfigReader) -> Scheme:
    reader.require_one_of("fmt", "e4m3", "e5m2")
    block = reader.get("weight_block_size")
    layouts = Scaled("weight_scale_inv", _block(reader, block)), Scaled("weight_scale", _block(reader, block))
    return Scheme("FP8", layouts)


def _block(reader: ConfigReader, block: Any) -> tuple[int, int] | None:
    if block is None:
        return None
    if not isinstance(block, list) or len(block) != 2 or not all(type(size) is int and size > 0 for size in block):
        raise ValueError(f"{reader.path}: {NAME} must give blocks as two positive integers, not {quoted(block)}")
    return block[0], block[1]


def _compressed_tensors(reader: ConfigReader) -> Scheme:
    formats = ("pack-quantized", "int-quantized", "float-quantized", "naive-quantized", "mixed-precision", "dense")
    reader.require_one_of("format", *formats)
    reader.require_one_of("transform_config", None, {})
    sparsity = reader.get("sparsity_config", {})
    if not isinstance(sparsity, dict) or sparsity.get("format", "dense") != "dense":
        raise ValueError(f"{reader.path}: {NAME}.sparsity_config {quoted(sparsity)} is not supported")
    groups = reader.get("config_groups", {})
    if not isinstance(groups, dict) or not groups:
        raise ValueError(f"{reader.path}: {NAME}.config_groups must be an object that is not empty")
    kinds = [_group(reader, f"config_groups.{name}", group, formats) for name, group in groups.items()]
    bits = tuple(sorted({kind.bits for kind in kinds}))
    blocks = [kind.block for kind in kinds if kind.block is not None]
    if len(set(blocks)) > 1:
        raise ValueError(f"{reader.path}: {NAME} names blocks of different sizes, which is not supported")
    label = " and ".join(sorted({kind.label for kind in kinds}))
    return Scheme(f"compressed-tensors {label}", (Packed(bits), Scaled("weight_scale", blocks[0] if blocks else None)))


class _Group(NamedTuple):
    """One of the groups of modules that compressed-tensors' configuration describes."""

    label: str
    bits: int
    block: tuple[int, int] | None


def _group(reader: ConfigReader, name: str, group: Any, formats: tuple[str, ...]) -> _Group:
    weights = group.get("weights") if isinstance(group, dict) else None
    if not isinstance(weights, dict):
        raise ValueError(f"{reader.path}: {NAME}.{name}.weights must be an object, not {quoted(weights)}")
    table = {f"{NAME}.{name}.{option}": value for option, value in {**group, **weights}.items()}
    part = ConfigReader(reader.path, table, f"{NAME}.{name}.")
    part.require_one_of("format", *formats)
    part.require_one_of("type", "int", "float")
    part.require_one_of("strategy", "tensor", "channel", "group", "block")
    is_float, bits = part.get("type", "int") == "float", part.count("num_bits", 8)
    part.require_one_of("num_bits", *((8,) if is_float else (8, 4, 2)))
    for activations in ("input_activations", "output_activations"):
        if not is_float and part.get(activations) is not None:
            raise ValueError(
                f"{reader.path}: {NAME}.{name}.{activations} are integers (W{bits}A8), which is not supported: "
                "only weights may be integers"
            )
    block = _block(part, part.get("block_structure")) if part.get("strategy") == "block" else None
    return _Group("FP8" if is_float else f"W{bits}A16", bits, block)


METHODS: dict[str, Callable[[ConfigReader], Scheme]] = {
    "gptq": _gptq,
    "awq": _awq,
    "compressed-tensors": _compressed_tensors,
    "fp8": _fp8,
    "fbgemm_fp8": _fp8,
}

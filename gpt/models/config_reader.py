"""Entries of a model's configuration, whichever file they come from, each checked as it is asked for."""

from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, Protocol, TypeVar

from torch import Tensor

from octavo.gpt.quoting import quoted

Config = TypeVar("Config")


class HasShape(Protocol):
    @property
    def shape(self) -> tuple[int, ...]: ...


class TensorSource(Protocol):
    """What a configuration may ask a file of tensors: which there are, their shapes, and the values of a small one."""

    @property
    def tensors(self) -> Mapping[str, HasShape]: ...

    def read(self, name: str) -> Tensor: ...


class ConfigReader:
    """A table of options, or its part below a prefix; null or absence is the default. Errors name file and option."""

    def __init__(self, path: Path, table: dict[str, Any], prefix: str = "") -> None:
        self.path, self.table, self.prefix = path, table, prefix

    def get(self, name: str, default: Any = None) -> Any:
        value = self.table.get(self.prefix + name)
        return default if value is None else value

    def count(self, name: str, default: int | None = None) -> int:
        value = self.get(name, default)
        if type(value) is not int or value < 1:
            raise ValueError(f"{self.path}: {self.prefix}{name} must be a positive integer, not {quoted(value)}")
        return value

    def flag(self, name: str, default: bool) -> bool:
        value = self.get(name, default)
        if type(value) is not bool:
            raise ValueError(f"{self.path}: {self.prefix}{name} must be true or false, not {quoted(value)}")
        return value

    def number(self, name: str, default: float | None = None) -> float:
        value = self.get(name, default)
        if type(value) not in (int, float) or not 0 < value < float("inf"):
            raise ValueError(f"{self.path}: {self.prefix}{name} must be a positive number, not {quoted(value)}")
        return float(value)

    def ids(self, name: str, vocab_size: int) -> tuple[int, ...]:
        """One token id or a list; an id outside the vocabulary never occurs and is left out."""
        values = as_list(self.get(name))
        if not all(type(value) is int for value in values):
            raise ValueError(
                f"{self.path}: {self.prefix}{name} must be a token id or a list of them, not {quoted(self.get(name))}"
            )
        return tuple(value for value in values if 0 <= value < vocab_size)

    def require_one_of(self, name: str, *supported: Any) -> None:
        """ValueError unless the option is left out or has one of these values."""
        if self.get(name, supported[0]) not in supported:
            only = ", ".join(map(repr, supported))
            raise ValueError(
                f"{self.path}: {self.prefix}{name} = {quoted(self.get(name))} is not supported (only {only})"
            )

    def read_fields(self, kind: Any, options: Mapping[str, str], **defaults: Any) -> dict[str, Any]:
        """Fields of a configuration by the options that hold them, each read as the type it has there."""
        readers: dict[Any, Callable[..., Any]] = {int: self.count, float: self.number, bool: self.flag}
        types = {field.name: field.type for field in fields(kind)}
        return {name: readers[types[name]](option, defaults.get(name)) for name, option in options.items()}

    def make(self, kind: Callable[..., Config], **fields: Any) -> Config:
        """A configuration of these fields; what it refuses is said with the file's name."""
        try:
            return kind(**fields)
        except ValueError as error:
            raise ValueError(f"{self.path}: {error}") from None


def as_list(value: Any) -> list[Any]:
    return [] if value is None else value if isinstance(value, list) else [value]


def gguf_shape(reader: ConfigReader, file: TensorSource) -> dict[str, Any]:
    """The fields of ModelConfig that every family's GGUF file states by the same keys."""
    dim, num_heads = reader.count("embedding_length"), reader.count("attention.head_count")
    embedding = file.tensors.get("token_embd.weight")
    return {
        "vocab_size": reader.count("vocab_size", embedding.shape[0] if embedding else None),
        "context_size": reader.count("context_length"),
        "dim": dim,
        "num_layers": reader.count("block_count"),
        "num_heads": num_heads,
        "num_kv_heads": reader.count("attention.head_count_kv", num_heads),
        "head_dim": reader.count("attention.key_length", dim // num_heads),
        "intermediate_dim": reader.count("feed_forward_length"),
        "tied_embeddings": "output.weight" not in file.tensors,
    }

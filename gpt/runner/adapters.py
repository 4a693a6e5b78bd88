"""AdapterTable: the adapters that requests may name, and the model that a step of their rows runs."""

from collections.abc import Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import torch

from octavo.gpt.loading.adapter import load_adapter
from octavo.gpt.models.base import Model
from octavo.gpt.models.lora import Adapter, adapted
from octavo.gpt.options.lora import Lora, LoRARequest, one_each
from octavo.gpt.quoting import quoted
from octavo.gpt.runner.transfer import to_device


class AdapterTable:
    """Adapters by number; number 0 is the model without any. No number is used twice, so what the prefix cache holds
    for one adapter is never found for another, whatever names they had.

    The name None stands for what a request gets that names none: number 0, unless an adapter was added as None.
    """

    def __init__(self, model: Model, device: torch.device) -> None:
        self.model = model
        self.device = device
        self._numbers: dict[str | None, int] = {None: 0}
        self._adapters: dict[int, Adapter] = {}
        self._folders: dict[str, Path] = {}  # of those that were read
        self._next = count(1)

    def load(self, name: str, folder: str | Path) -> None:
        """Read an adapter in PEFT's format, which requests may name from now on; ValueError says what is wrong."""
        if not isinstance(name, str) or not name:
            raise ValueError(f"an adapter's name must be a text of at least one character, not {quoted(name)}")
        if name in self._numbers:
            raise ValueError(f"an adapter named {quoted(name)} is loaded already")
        self.add(name, load_adapter(folder, self.model))
        self._folders[name] = Path(folder)

    def load_all(self, default: str | Path | None, folders: Mapping[str, str | Path]) -> None:
        """Read the adapter of requests that name none, and others by name."""
        if default is not None:
            self.add(None, load_adapter(default, self.model))
        for name, folder in folders.items():
            self.load(name, folder)

    def add(self, name: str | None, adapter: Adapter) -> None:
        """Let requests name the adapter."""
        number = next(self._next)
        self._adapters[number] = adapter
        self._numbers[name] = number

    def remove(self, name: str, used: Sequence[int]) -> None:
        """Forget an adapter; ValueError where there is none of that name, or where its number is used."""
        number = self.number(name)
        if name is None:
            raise ValueError("unload_adapter needs the name of an adapter, not None")
        if number in used:
            raise ValueError(f"adapter {quoted(name)} is in use by {used.count(number)} unfinished completions")
        del self._adapters[number], self._numbers[name]
        self._folders.pop(name, None)

    @property
    def names(self) -> list[str]:
        """What requests may name."""
        return [name for name in self._numbers if name is not None]

    def number(self, name: Any) -> int:
        """The number of the adapter of that name; ValueError where there is none."""
        if not isinstance(name, str | None) or name not in self._numbers:
            known = ", ".join(quoted(known) for known in self._numbers if known is not None)
            raise ValueError(
                f"no adapter {quoted(name)} is loaded: {f'there are {known}' if known else 'there is none'}"
            )
        return self._numbers[name]

    def numbers(self, lora: Lora | Sequence[Lora], number: int) -> list[int]:
        """The adapters of so many requests: one for all or one each, read now where a LoRARequest brings a new one."""
        each = one_each(lora, number)
        for request in dict.fromkeys(each):
            if isinstance(request, LoRARequest) and request.lora_name not in self._numbers:
                self.load(request.lora_name, request.lora_path)
            elif isinstance(request, LoRARequest) and self._folders.get(request.lora_name) != Path(request.lora_path):
                raise ValueError(f"an adapter named {quoted(request.lora_name)} is loaded already, from another folder")
        return [self.number(want.lora_name if isinstance(want, LoRARequest) else want) for want in each]

    def model_for(self, numbers: list[int]) -> Model:
        """The model for a step of these rows, each computed with the adapter of its number."""
        if not any(numbers):
            return self.model
        rows_of: dict[int, list[int]] = {}
        for row, number in enumerate(numbers):
            rows_of.setdefault(number, []).append(row)
        return adapted(
            self.model,
            [
                (self._adapters[number], to_device(rows, torch.int64, self.device))
                for number, rows in rows_of.items()
                if number
            ],
        )

    def model_with(self, lora: Lora) -> Model:
        """The model for steps in which every row has that adapter."""
        (number,) = self.numbers(lora, 1)
        return adapted(self.model, [(self._adapters[number], slice(None))]) if number else self.model

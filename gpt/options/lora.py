"""What a request says about the adapter that it wants: a name, vLLM's LoRARequest, or nothing."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from octavo.gpt.quoting import quoted


@dataclass(frozen=True)
class LoRARequest:
    """An adapter by name and folder, loaded when a request first names it. The number is vLLM's and not looked at."""

    lora_name: str
    lora_int_id: int
    lora_path: str | Path


Lora: TypeAlias = str | LoRARequest | None


def one_each(lora: Lora | Sequence[Lora], number: int) -> list[Any]:
    """What each of so many requests wants: one thing for all, or one each."""
    if isinstance(lora, str | LoRARequest | None):
        return [lora] * number
    if not isinstance(lora, Sequence) or not all(isinstance(each, str | LoRARequest | None) for each in lora):
        raise ValueError(f"lora must be an adapter's name, a LoRARequest, None or a list of them, not {quoted(lora)}")
    if len(lora) != number:
        raise ValueError(f"lora has {len(lora)} entries for {number} prompts")
    return list(lora)

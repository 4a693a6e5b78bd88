"""What trainers of reinforcement learning ask of an engine: other weights, and its memory for a while; vLLM's words."""

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from octavo.gpt.engine import Engine
from octavo.gpt.engine_thread import EngineThread
from octavo.gpt.runner.update import Tensors


class Rollouts:
    """Of an LLM. Every call needs an engine without unfinished requests, RuntimeError says how many there are."""

    thread: EngineThread
    engine: Engine
    source: Path | None  # the folder or file that the model was read from

    def update_weights(self, tensors: Tensors) -> None:
        """Take new weights in place, by the names of the model's Hugging Face checkpoint: pairs of name and tensor.

        Tensors are float64, float32, float16 or bfloat16, on any device; they are copied into the model's dtype, and
        quantised again where weights are. Those that are left out keep their values; those that are kept in one (q, k
        and v; gate and up) come together. ValueError names the first that has no place or another shape, and then no
        weight was changed. Answers are those of a fresh LLM of the new weights, bit for bit: the prefix cache is reset.
        """
        if self.source is not None and self.source.is_file():
            raise ValueError(f"update_weights is for models of Hugging Face folders, this one is of {self.source}")
        self._idle("update_weights", self.engine.residence.update, tensors)

    def reset_prefix_cache(self) -> bool:
        """Let no request find what earlier ones computed; True, as vLLM's."""
        self.thread.call(self.engine.scheduler.reset_prefix_cache)
        return True

    def sleep(self, level: int = 1) -> None:
        """Free the cache, and at level 2 the weights too. Requests are refused until the engine wakes up."""
        self._idle("sleep", self.engine.residence.sleep, level)

    def wake_up(self, tags: Iterable[str] | None = None) -> None:
        """Take the memory back. After `sleep(level=2)`, requests are refused until `update_weights` gave all weights.

        tags: "weights" and "kv_cache", for what is needed next; None for both.
        """
        self._idle("wake_up", self.engine.residence.wake_up, tags)

    def _idle(self, name: str, change: Callable[[Any], None], argument: Any) -> None:
        self.thread.call(_change_idle, self.engine, name, change, argument)


def _change_idle(engine: Engine, name: str, change: Callable[[Any], None], argument: Any) -> None:
    """On the engine's thread: refuse while requests run; what the cache holds follows from what was."""
    if number := len(engine.unfinished_requests):
        raise RuntimeError(f"{name} needs an idle engine, and {number} requests are unfinished: await or abort them")
    try:
        change(argument)
    finally:
        engine.scheduler.reset_prefix_cache()

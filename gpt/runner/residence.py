"""Residence: whether the weights and the cache are in memory. Between requests, both may go, come back and change."""

from collections.abc import Iterable

from octavo.gpt.models.base import Model
from octavo.gpt.options.checks import integer
from octavo.gpt.options.lora import Lora
from octavo.gpt.quoting import quoted
from octavo.gpt.runner.model_runner import Runner
from octavo.gpt.runner.update import Tensors, apply, is_whole, plan_update, release

WEIGHTS, CACHE = "weights", "kv_cache"
HELP = {  # what is missing -> what to do
    CACHE: "the cache was freed by sleep: call wake_up",
    WEIGHTS: "the weights were freed, or an update of them failed: give all of them to update_weights",
}


class Residence:
    """The large things of a runner. Whoever changes one sees to it that no request runs."""

    def __init__(self, runner: Runner) -> None:
        self.runner = runner
        self.missing: set[str] = set()  # of what requests need
        self._dtype, self._device = runner.cache.data.dtype, runner.device

    def require(self) -> None:
        """RuntimeError where something that a request needs is not in memory."""
        for part in HELP:
            if part in self.missing:
                raise RuntimeError(f"the engine takes no requests: {HELP[part]}")

    def model_with(self, lora: Lora) -> Model:
        """The model for steps in which every row has that adapter; RuntimeError as of `require`."""
        self.require()
        return self.runner.adapters.model_with(lora)

    def sleep(self, level: int) -> None:
        """Free the cache, and at level 2 the weights."""
        self.missing |= {CACHE, WEIGHTS} if integer("level", level, 1, 2) == 2 else {CACHE}
        self.runner.cache.release()
        if level == 2:
            release(self.runner.model, self._dtype, self._device)
        self.runner.forget_steps()

    def wake_up(self, tags: Iterable[str] | None = None) -> None:
        """Take memory for the cache again; weights come by `update`, whatever the tags."""
        tags = [WEIGHTS, CACHE] if tags is None else list(tags)
        for tag in tags:
            if tag not in HELP:
                raise ValueError(f"tags must be among {WEIGHTS} and {CACHE}, not {quoted(tag)}")
        if CACHE in tags and CACHE in self.missing:
            self.runner.cache.restore()
            self.missing.discard(CACHE)

    def update(self, tensors: Tensors) -> None:
        """Replace weights; ValueError before the first is changed. What fails later leaves the engine without any."""
        model = self.runner.model
        plan = plan_update(model, tensors)
        was_missing = WEIGHTS in self.missing
        self.missing.add(WEIGHTS)
        apply(model, plan, self._dtype, self._device)
        if is_whole(model, plan) or not was_missing:
            self.missing.discard(WEIGHTS)
        self.runner.forget_steps()

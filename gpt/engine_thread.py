"""EngineThread: the one owner of an engine. What callers on any thread ask is done on it, between two steps.

Ctrl-C, autocast, a default device and whatever else belongs to a caller's thread never reaches a step, and one team of
OpenMP threads does all computing. The thread steps by itself while a request has a listener (`Engine.is_driven`).
"""

import atexit
import os
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any, ParamSpec, TypeVar
from weakref import WeakSet

import torch

from octavo.gpt.engine import Engine
from octavo.gpt.loading.loader import LoadedModel
from octavo.gpt.runner.decode_graph import cuda_capture
from octavo.gpt.runner.kv_cache import PagedCache
from octavo.gpt.runner.model_runner import Runner
from octavo.gpt.runner.threads import place_team, release_team, usable_threads
from octavo.gpt.scheduler.config import EngineConfig
from octavo.gpt.speculative.proposer import Options
from octavo.gpt.speculative.speculation import make_speculation
from octavo.kernels import backends

P = ParamSpec("P")
T = TypeVar("T")

LULL = 0.02  # seconds without a command, after which others may have the cores to themselves
PATIENCE = 10.0  # seconds that the end of the process waits for a step that is being computed

_owners: "WeakSet[EngineThread]" = WeakSet()
_threads: "WeakSet[threading.Thread]" = WeakSet()  # one outlives its owner while it frees what the owner had


class EngineClosedError(RuntimeError):
    """The engine was closed, or belongs to another process."""


class _Command:
    """A call to be made on the engine's thread, with as many threads for PyTorch as its caller has."""

    def __init__(self, function: Callable[[], Any]) -> None:
        self.function = function
        self.future: Future[Any] = Future()
        self.num_threads = torch.get_num_threads()
        self.started = False

    def run(self) -> None:
        self.started = True
        if not self.future.set_running_or_notify_cancel():
            return
        try:
            num_threads = usable_threads(self.num_threads)
            if num_threads != torch.get_num_threads():
                torch.set_num_threads(num_threads)
            result = self.function()
        except BaseException as error:
            self.fail(error)
        else:
            self.future.set_result(result)

    def fail(self, error: BaseException) -> None:
        """Give the caller the error, unless there is a result already."""
        if not self.future.done():
            self.future.set_exception(error)


def make_engine(
    loaded: LoadedModel,
    config: EngineConfig,
    device: torch.device,
    seed: int,
    enable_prefix_caching: bool,
    cuda_graphs: str,
    speculative: Options | None = None,
) -> Engine:
    """Return an engine of the model with a cache of its own, on CUDA with its graphs captured if "startup" asks."""
    model, on_cuda = loaded.model, device.type == "cuda"
    cache = PagedCache(model.config, config.num_blocks, config.block_size, loaded.dtype, device)
    graphs = on_cuda and cuda_graphs != "off" and backends.can_be_captured(model.ops)
    capture = cuda_capture() if graphs else None
    speculation = make_speculation(speculative, loaded, config, device, capture)
    runner = Runner(model, cache, config, device, capture, speculation.max_rows)
    if graphs and cuda_graphs == "startup":
        runner.warm_up(config.max_num_batched_tokens)
    return Engine(
        runner, model.config, config, loaded.tokenizer, seed, enable_prefix_caching, on_cuda, speculation=speculation
    )


class EngineThread:
    """Makes an engine on a thread of its own (`own`), and does there all that is asked of it (`call`).

    RuntimeError where the thread itself asks (an op or a hook of the caller's, within a step), EngineClosedError after
    `close`, and in a forked child whose parent was in the middle of a step.
    """

    def __init__(self) -> None:
        self.engine: Engine | None = None
        self._reason: str | None = None  # why nothing can be asked any more
        self._begin()
        _owners.add(self)

    def own(self, make: Callable[P, Engine], *args: P.args, **kwargs: P.kwargs) -> Engine:
        """Make the engine, which the thread steps from now on."""
        self.engine = self.call(make, *args, **kwargs)
        return self.engine

    def call(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run it on the engine's thread and return its result, or raise what it raised."""
        if self.is_current:
            raise RuntimeError("the engine cannot be asked from within its own step, by an op or a hook of the model")
        return self.submit(function, *args, **kwargs).result()

    def submit(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> "Future[T]":
        """Have it run on the engine's thread; what was submitted first runs first."""
        if self._reason is not None:
            raise EngineClosedError(self._reason)
        if not self.is_current:
            release_team()
        command = _Command(partial(function, *args, **kwargs))
        self._inbox.append(command)
        self._bell.put(None)
        if self._reason is not None:
            self._refuse_all()  # the thread may have ended before the command was there
        return command.future

    @property
    def is_current(self) -> bool:
        """Whether the caller is on the engine's thread, which cannot wait for itself."""
        return threading.current_thread() is self._thread

    def settle(self) -> None:
        """Wait until what was asked before is done."""
        if self._inbox and self._reason is None:
            self.call(bool)

    def stop(self) -> None:
        """Let the thread end after the step that it is in; requests that run are aborted."""
        self._reason = self._reason or "the engine is closed"
        self._bell.put(None)

    def close(self) -> None:
        """Stop, and wait until the thread has ended."""
        self.stop()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(PATIENCE)

    def _begin(self) -> None:
        self._inbox: deque[_Command] = deque()
        self._bell: SimpleQueue[None] = SimpleQueue()  # rung for every command, and to stop
        self._is_idle = False
        self._team_size = 0  # of the OpenMP threads as they were placed on cores
        self._thread: threading.Thread | None = threading.Thread(target=self._run, name="octavo-engine", daemon=True)
        _threads.add(self._thread)
        self._thread.start()

    def _run(self) -> None:
        while self._reason is None:
            try:
                while self._reason is None:
                    self._take_turn()
            except BaseException as error:  # a step has told its listeners; a command's caller is told here
                if self._inbox and self._inbox[0].started:
                    self._inbox.popleft().fail(error)
        if self.engine is not None:
            self.engine.abort_all()
        self._refuse_all()

    def _take_turn(self) -> None:
        """Run what was asked for first; else step, if a request is listened to; else wait."""
        if self.engine is not None and self._team_size != torch.get_num_threads():
            self._team_size = torch.get_num_threads()
            place_team(self._team_size)
        if self._inbox:
            self._inbox[0].run()
            self._inbox.popleft()
        elif self.engine is not None and self.engine.is_driven:
            self.engine.step()
        else:
            self._is_idle = True
            self._wait()
            self._is_idle = False

    def _wait(self) -> None:
        """Wait for a command; after a while without the OpenMP threads, which slow down all others that compute."""
        try:
            self._bell.get(timeout=LULL)
        except Empty:
            release_team()
            self._team_size = 0
            self._bell.get()

    def _refuse_all(self) -> None:
        while self._inbox:
            self._inbox.popleft().fail(EngineClosedError(self._reason))

    def leave_parent(self) -> None:
        """In a forked child, where the thread does not exist: start another, if the parent's was idle."""
        is_whole = self._is_idle and not self._inbox
        self._thread = None
        if self._reason is None and is_whole and self.engine is not None and self.engine.runner.device.type != "cuda":
            self.engine.forget_all()
            self._begin()
        elif self._reason is None:
            self._reason = "a forked child cannot use this engine of its parent: load the model in the child"


def _leave_parents() -> None:
    for owner in list(_owners):
        owner.leave_parent()


@atexit.register
def _close_all() -> None:
    """Wait for every thread to end: the interpreter kills one that is left, and in C++ that aborts the process."""
    for owner in list(_owners):
        owner.stop()
    for thread in list(_threads):
        thread.join(PATIENCE)


os.register_at_fork(after_in_child=_leave_parents)

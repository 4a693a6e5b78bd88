"""A server in a thread of the test's process, on a free port, with a model of a few thousand weights."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tiny_folder import LIMITS, save_tiny

from octavo.gpt import SamplingParams
from octavo.gpt.async_llm import AsyncLLM
from octavo.gpt.server.run import Server, listen
from octavo.gpt.server.settings import Settings

WARM_UP = SamplingParams(max_tokens=4, seed=0)


@contextmanager
def served(folder: Path, options: dict[str, Any] | None = None, **settings: Any) -> Iterator[Server]:
    """Serve the tiny model of that folder, made where it is not there; options are LLM's."""
    model = folder if (folder / "config.json").exists() else save_tiny(folder)
    wanted = LIMITS | {"backend": "cpu", "max_model_len": 96, "num_blocks": 256} | (options or {})
    own = Settings(**{"port": 0, "served_model_name": "tiny", "shutdown_timeout": 5.0, **settings})
    listener = listen(own)
    server = Server(lambda: AsyncLLM(model, **wanted), "tiny", own, listener)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        wait_for(lambda: server.serving.is_ready or not thread.is_alive())
        server.serving.llm.generate([[5, 6, 7]], WARM_UP, use_tqdm=False)  # kernels may have to be compiled
        yield server
    finally:
        server.should_exit = True
        thread.join(30)
    assert not thread.is_alive(), "the server stops"


def wait_for(is_so: Any, seconds: float = 30) -> None:
    """Wait until something is so; it is a failure if that takes too long."""
    deadline = time.monotonic() + seconds
    while not is_so():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.02)

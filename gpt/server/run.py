"""Run the server: listen, load the model, serve; asked to stop, let running requests end within the time limit."""

import asyncio
import socket
import sys
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager, suppress

import uvicorn
from fastapi import FastAPI

from octavo.gpt.async_llm import AsyncLLM
from octavo.gpt.quoting import one_line
from octavo.gpt.server.app import make_app
from octavo.gpt.server.serving import Serving
from octavo.gpt.server.settings import Settings

PROGRESS = 5.0  # seconds between two lines while the model is loaded
LAST_WORDS = 2  # seconds that connections get to close in after the last answer


def serve(
    make: Callable[[], AsyncLLM], name: str, settings: Settings, listening: Callable[[str], None] | None = None
) -> None:
    """Serve until a signal asks to stop; OSError where the port cannot be had, else what loading the model raised.

    make: returns the model, which takes a while. name: what it is called while it is loaded. listening: hears of
    the server's address before that.
    """
    listener = listen(settings)
    server = Server(make, name, settings, listener)
    if listening is not None:
        listening(server.url)
    server.run(sockets=[listener])
    if server.failure is not None:
        raise server.failure


def listen(settings: Settings) -> socket.socket:
    """Return a socket that listens where the settings say."""
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    try:
        return socket.create_server((settings.host, settings.port), family=family, backlog=2048)
    except (OSError, OverflowError) as error:
        reason = (getattr(error, "strerror", None) or str(error)).partition(" (while")[0]
        raise OSError(f"cannot listen at {one_line(settings.host)} port {settings.port}: {reason}") from None


class Server(uvicorn.Server):
    """A uvicorn server that loads its model while it listens already, and stops without cutting anybody short."""

    def __init__(
        self, make: Callable[[], AsyncLLM], name: str, settings: Settings, listener: socket.socket | None = None
    ) -> None:
        self.serving = Serving(settings)
        self.failure: BaseException | None = None
        self._make, self._name, self._listener = make, name, listener
        app = make_app(self.serving)
        app.router.lifespan_context = self._lifespan
        super().__init__(
            uvicorn.Config(app, log_config=None, access_log=False, lifespan="on", timeout_graceful_shutdown=LAST_WORDS)
        )

    @property
    def url(self) -> str:
        """Where the server is reached."""
        host, port = self._listener.getsockname()[:2] if self._listener else ("", 0)
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"

    @asynccontextmanager
    async def _lifespan(self, app: FastAPI) -> AsyncGenerator[None, None]:
        loading = asyncio.create_task(self._load())
        try:
            yield
        finally:
            loading.cancel()
            if self.serving.has_model:
                await self.serving.async_llm.close()

    async def _load(self) -> None:
        started = time.perf_counter()
        work = asyncio.create_task(asyncio.to_thread(self._make))
        _say(f"loading {self._name}; {self.url} answers 503 until it is there")
        while not (await asyncio.wait([work], timeout=PROGRESS))[0]:
            _say(f"loading {self._name}, {time.perf_counter() - started:.0f} s so far")
        try:
            self.serving.begin(work.result())
        except BaseException as error:
            self.failure, self.should_exit = error, True
            return
        _say(f"serving {self.serving.model_name} at {self.url} after {time.perf_counter() - started:.1f} s")

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Take no more requests, wait for those that run, end what is left, close."""
        self.serving.is_stopping = True
        deadline = time.monotonic() + self.serving.settings.shutdown_timeout
        with suppress(Exception):
            while self.serving.num_open and time.monotonic() < deadline and not self.force_exit:
                await asyncio.sleep(0.05)
            await self.serving.abort_all()
        await super().shutdown(sockets)


def _say(line: str) -> None:
    print(f"octavo: {one_line(line)}", file=sys.stderr, flush=True)

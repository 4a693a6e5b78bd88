"""A soak of the server: clients that come and go, a third of them before their answer is complete.

Prints a report, and fails where a block is lost, memory grows or an answer is wrong: `make soak-serve SECONDS=600`.
"""

import asyncio
import random
import sys
import tempfile
import time
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import httpx2
import psutil
import torch

from served import served, wait_for

CLIENTS = 200
WARM_UP = 0.3  # of the time, after which memory is compared
GROWTH = 24 * 2**20  # bytes that it may still grow: of histograms, connections, allocators


class Client:
    """One client after another asks for a completion; each third leaves early."""

    def __init__(self, http: Any, number: int, until: float) -> None:
        self.http, self.random, self.until = http, random.Random(number), until
        self.gaps: list[float] = []
        self.num_whole = self.num_left = self.num_refused = 0
        self.texts: dict[int, str] = {}

    async def run(self) -> None:
        """Ask until the time is over."""
        await asyncio.sleep(self.random.random())
        while time.monotonic() < self.until:
            await self.ask(self.random.randrange(40), self.random.random() < 1 / 3)

    async def ask(self, kind: int, leaves: bool) -> None:
        """Stream one of 40 different completions; whoever asked the same got the same."""
        body = {"prompt": [5 + kind, 6, 7 + kind % 5] * 4, "seed": kind, "max_tokens": 8 + kind, "ignore_eos": True}
        last, pieces, patience = None, [], self.random.randrange(1, 8)
        async with self.http.stream("POST", "/v1/completions", json={**body, "stream": True}) as answer:
            if answer.status_code == 503:
                self.num_refused += 1
                return
            assert answer.status_code == 200, answer.status_code
            async for line in answer.aiter_lines():
                if not line.startswith("data: "):
                    continue
                now = time.perf_counter()
                if last is not None:
                    self.gaps.append(now - last)
                last, pieces = now, [*pieces, line]
                if leaves and len(pieces) > patience:
                    self.num_left += 1
                    return
        assert pieces[-1] == "data: [DONE]", "an answer was cut off"
        self.num_whole += 1
        text = "".join(line.partition('"text":"')[2].partition('","logprobs"')[0] for line in pieces)
        assert self.texts.setdefault(kind, text) == text, "the same request got another text"


async def drive(url: str, seconds: float) -> tuple[list[Client], list[int]]:
    """Let the clients loose; return them, and the process's memory once a second."""
    until, memory = time.monotonic() + seconds, []
    limits = httpx2.Limits(max_connections=CLIENTS, max_keepalive_connections=CLIENTS)
    async with httpx2.AsyncClient(base_url=url, timeout=300, limits=limits) as http:
        clients = [Client(http, number, until) for number in range(CLIENTS)]
        tasks = [asyncio.create_task(client.run()) for client in clients]
        while not all(task.done() for task in tasks):
            memory.append(psutil.Process().memory_info().rss)
            await asyncio.sleep(1)
        await asyncio.gather(*tasks)
    return clients, memory


def report(clients: list[Client]) -> str:
    """Say what became of the requests, and how long tokens took."""
    whole, left, refused = (sum(getattr(c, f"num_{what}") for c in clients) for what in ("whole", "left", "refused"))
    gaps = [gap * 1e3 for client in clients for gap in client.gaps]
    ends = f"{whole} answers complete, {left} left early, {refused} refused, 0 cut off"
    return f"{ends}; inter-token p50 {median(gaps):.1f} ms, p99 {quantiles(gaps, n=100)[98]:.1f} ms"


def main(seconds: float) -> None:
    """Run the soak, print what was seen, and raise AssertionError for what must not be."""
    torch.set_num_threads(1)
    options = {"max_num_seqs": 32, "num_blocks": 160, "block_size": 4}  # so that requests are set aside at times
    with tempfile.TemporaryDirectory() as folder, served(Path(folder) / "model", options, quiet=True) as server:
        clients, memory = asyncio.run(drive(server.url, seconds))
        wait_for(lambda: server.serving.num_open == 0)
        stats = server.serving.llm.stats()
        texts: dict[int, set[str]] = {}
        for client in clients:
            for kind, text in client.texts.items():
                texts.setdefault(kind, set()).add(text)
        assert all(len(each) == 1 for each in texts.values()), "two clients got different texts for the same request"
        first = max(memory[: max(int(len(memory) * WARM_UP), 1)])
        growth = max(memory[-max(len(memory) // 10, 1) :]) - first
        print(
            f"{CLIENTS} clients, {seconds:.0f} s: {report(clients)}; {stats['requests_preempted']} preempted; "
            f"blocks in use at the end {stats['blocks_used']}; memory {first / 2**20:.0f} MiB after the warm-up, "
            f"{growth / 2**20:+.1f} MiB at the end"
        )
        assert stats["blocks_used"] == stats["requests_running"] == stats["requests_waiting"] == 0, "blocks were lost"
        assert growth < GROWTH, "memory grew"


if __name__ == "__main__":
    main(float(sys.argv[1]) if len(sys.argv) > 1 else 600)

"""The engine as a state machine, driven through the public doors: whatever was asked in whatever order, the books are
right, everything ends, and every request gets what it gets alone."""

from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from tiny_folder import load_tiny

from octavo.gpt import SamplingParams

from watched import check_idle

TIGHT = {"num_blocks": 24, "max_num_seqs": 4, "max_num_batched_tokens": 24, "max_num_waiting": 8}
PROMPTS = st.lists(st.integers(2, 250), min_size=1, max_size=30)
PARAMS = st.builds(
    SamplingParams,
    n=st.integers(1, 2),
    temperature=st.sampled_from((0, 0.7, 2)),
    top_p=st.sampled_from((1.0, 0.5)),
    max_tokens=st.integers(1, 12),
    seed=st.integers(0, 3),
    logprobs=st.sampled_from((None, 0, 2)),
    stop=st.sampled_from(((), ("a", "ee"), (" the",))),
    ignore_eos=st.booleans(),
    repetition_penalty=st.sampled_from((1.0, 1.3)),
)
SETTINGS = settings(
    max_examples=1, stateful_step_count=25, deadline=None, database=None, suppress_health_check=list(HealthCheck)
)


class Machine(RuleBasedStateMachine):
    """One LLM serves all runs: what one leaves behind, the next one trips over."""

    llm: Any = None
    alone: Any = None

    def __init__(self) -> None:
        super().__init__()
        self.asked: dict[int, tuple[list[int], SamplingParams]] = {}
        self.streams: list[tuple[Any, list[str], list[int], SamplingParams]] = []

    @precondition(lambda self: len(self.asked) < 6)
    @rule(prompt=PROMPTS, params=PARAMS)
    def add(self, prompt: list[int], params: SamplingParams) -> None:
        self.asked[self.llm.add(prompt, params)] = prompt, params

    @rule(steps=st.integers(1, 4))
    def step(self, steps: int) -> None:
        for _ in range(steps):
            if self.llm.has_unfinished:
                self.collect(self.llm.step())

    @precondition(lambda self: self.asked)
    @rule(data=st.data())
    def abort(self, data: Any) -> None:
        number = data.draw(st.sampled_from(sorted(self.asked)))
        self.llm.abort(number)
        del self.asked[number]

    @rule(prompts=st.lists(PROMPTS, min_size=1, max_size=3), params=PARAMS)
    def generate(self, prompts: list[list[int]], params: SamplingParams) -> None:
        for prompt, request in zip(prompts, self.llm.generate(prompts, params), strict=True):
            self.is_as_alone(request, prompt, params)

    @precondition(lambda self: len(self.streams) < 3)
    @rule(prompt=PROMPTS, params=PARAMS.filter(lambda params: params.n == 1))
    def stream(self, prompt: list[int], params: SamplingParams) -> None:
        self.streams.append((self.llm.stream(prompt, params), [], prompt, params))

    @precondition(lambda self: self.streams)
    @rule(data=st.data(), pieces=st.integers(1, 20))
    def read(self, data: Any, pieces: int) -> None:
        entry = data.draw(st.sampled_from(range(len(self.streams))))
        stream, text, prompt, params = self.streams[entry]
        for _ in range(pieces):
            piece = next(stream, None)
            if piece is None:
                assert "".join(text) == self.alone.generate([prompt], params)[0].outputs[0].text
                del self.streams[entry]
                return
            text.append(piece)

    @precondition(lambda self: self.streams)
    @rule(data=st.data())
    def leave(self, data: Any) -> None:
        self.streams.pop(data.draw(st.sampled_from(range(len(self.streams)))))[0].close()

    @invariant()
    def knows_what_is_unfinished(self) -> None:
        assert self.llm.has_unfinished or not self.asked

    def collect(self, touched: Any) -> None:
        for request in touched:
            if request.finished and request.request_id in self.asked:
                self.is_as_alone(request, *self.asked.pop(request.request_id))

    def is_as_alone(self, request: Any, prompt: list[int], params: SamplingParams) -> None:
        (expected,) = self.alone.generate([prompt], params)
        ours, theirs = ([(o.token_ids, o.text, o.finish_reason) for o in r.outputs] for r in (request, expected))
        assert ours == theirs, f"{prompt}, {params}"

    def teardown(self) -> None:
        for stream, *_ in self.streams:
            stream.close()
        while self.llm.has_unfinished:
            self.collect(self.llm.step())
        self.llm.thread.call(check_idle, self.llm.engine)
        assert not self.asked, "a request never ended"


def prepare(folder: Path) -> None:
    Machine.llm, Machine.alone = load_tiny(folder, "reference", **TIGHT), load_tiny(folder, "reference")

"""The engine as a state machine, driven through the public doors: whatever was asked in whatever order, the books are
right, everything ends, and every request gets what it gets alone."""

from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule
from tiny_folder import load_tiny

from octavo.gpt import SamplingParams

from watched import check_idle

TIGHT = {"num_blocks": 17, "max_num_seqs": 4, "max_num_batched_tokens": 24, "max_num_waiting": 64}
PROMPTS = st.builds(  # of few kinds, so that they share beginnings
    lambda length, kind: [2 + (kind * 7 + i * i) % 240 for i in range(length)], st.integers(1, 45), st.integers(0, 3)
)
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
# The first example of several is always the smallest, so a single one would try nothing.
SETTINGS = settings(
    max_examples=4, stateful_step_count=30, deadline=None, database=None, phases=[Phase.generate],
    suppress_health_check=list(HealthCheck),
)  # fmt: skip


class Machine(RuleBasedStateMachine):
    """One LLM serves all runs: what one leaves behind, the next one trips over."""

    llm: Any = None
    alone: Any = None

    def __init__(self) -> None:
        super().__init__()
        self.asked: dict[int, tuple[Any, list[int], SamplingParams]] = {}
        self.texts: list[list[int]] = []  # prompts with what was answered, newest last
        self.streams: list[tuple[Any, list[str], list[int], SamplingParams]] = []

    @precondition(lambda self: len(self.asked) < 6)
    @rule(prompt=PROMPTS, params=PARAMS)
    def add(self, prompt: list[int], params: SamplingParams) -> None:
        """As `LLM.add` does, which keeps the output to itself until a step returns it."""
        request = self.llm.thread.call(self.llm.engine.add, prompt, params, None)
        self.asked[request.request_id] = request, prompt, params

    @rule(steps=st.integers(1, 4))
    def step(self, steps: int) -> None:
        for _ in range(steps):
            if self.llm.has_unfinished:
                self.llm.step()
        for number, entry in list(self.asked.items()):
            if entry[0].finished:
                self.is_as_alone(*self.asked.pop(number))

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

    @precondition(lambda self: self.texts)
    @rule(data=st.data(), more=PROMPTS, params=PARAMS)
    def reply(self, data: Any, more: list[int], params: SamplingParams) -> None:
        """The next turn of a chat: what was generated is found, and changes nothing."""
        text = data.draw(st.sampled_from(self.texts[-4:]))
        self.generate([(text + more)[:45]], params)

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

    def is_as_alone(self, request: Any, prompt: list[int], params: SamplingParams) -> None:
        (expected,) = self.alone.generate([prompt], params)
        ours, theirs = ([(o.token_ids, o.text, o.finish_reason) for o in r.outputs] for r in (request, expected))
        assert ours == theirs, f"{prompt}, {params}"
        self.texts += [[*prompt, *output.token_ids] for output in request.outputs]

    def teardown(self) -> None:
        for stream, *_ in self.streams:
            stream.close()
        while self.llm.has_unfinished:
            self.llm.step()
        self.llm.thread.call(check_idle, self.llm.engine)
        for entry in self.asked.values():
            assert entry[0].finished, "a request never ended"
            self.is_as_alone(*entry)


def prepare(folder: Path) -> None:
    Machine.llm, Machine.alone = load_tiny(folder, "reference", **TIGHT), load_tiny(folder, "reference")

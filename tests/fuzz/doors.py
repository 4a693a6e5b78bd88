"""What is tried: each door makes input number n of a seed, and puts it in."""

import contextlib
import io
import os
import random
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import machine
import test_interrupts as interrupted
import torch
from hypothesis import seed as seeded
from hypothesis.stateful import run_state_machine_as_test
from interrupts import LineCounter, run_counted
from mutate import mutate_bytes, mutate_text
from tiny_folder import CHATML, ids_of, load_tiny, save_tiny

from octavo.gpt import LLM, SamplingParams
from octavo.gpt.tokenizer import chat_template

from bench_tiny import RUN, bench, record, write
from checkpoints import LLAMA, LLAMA_GGUF, llama_gguf_tensors, llama_shapes, random_tensors, save_gguf
from made_tokenizers import RULES, as_gguf, train

SHORT = SamplingParams(temperature=0, max_tokens=3)


class RefusedError(Exception):
    """A command said no: its line, to be judged as a ValueError's."""


@dataclass(frozen=True)
class Door:
    """`prepare(base)` once a process; `try_input(base, work, rng, number)` makes an input below `work` and uses it."""

    prepare: Callable[[Path], None]
    try_input: Callable[[Path, Path, random.Random, int], None]


def nothing(base: Path) -> None:
    pass


def make_folder(base: Path) -> None:
    if not (base / "folder" / "tokenizer_config.json").exists():
        (base / "folder").mkdir(parents=True, exist_ok=True)
        save_tiny(base / "folder")
    use_model(base / "folder")


def use_model(path: Path) -> None:
    """Load it, and answer."""
    with LLM(path, backend="reference", dtype="float32", max_model_len=96, num_blocks=32, block_size=4) as llm:
        llm.generate([[1, 2, 3]], SHORT, use_tqdm=False)
        if llm.tokenizer is not None:
            llm.generate(["Hello, it's 12 o'clock."], SHORT, use_tqdm=False)
            llm.chat([{"role": "user", "content": "Hi"}], SHORT)


def try_folder(base: Path, work: Path, rng: random.Random, number: int) -> None:
    shutil.copytree(base / "folder", work / "model")
    for path in rng.sample(sorted((work / "model").iterdir()), rng.choice((1, 1, 1, 2))):
        if rng.random() < 0.03:
            path.unlink()
        elif path.suffix == ".json":
            path.write_bytes(mutate_text(path.read_text(), rng))
        else:
            path.write_bytes(mutate_bytes(path.read_bytes(), rng))
    use_model(work / "model")


def make_gguf(base: Path) -> None:
    if not (base / "model.gguf").exists():
        base.mkdir(parents=True, exist_ok=True)
        fields = as_gguf(train(RULES["smollm"]), "smollm")
        config = LLAMA | {"vocab_size": len(fields["tokenizer.ggml.tokens"])}
        tensors = llama_gguf_tensors(random_tensors(llama_shapes(config)), 3, 1)
        more = {"llama.context_length": 128, "tokenizer.chat_template": CHATML}
        save_gguf(base / "model.gguf", LLAMA_GGUF | more | fields, tensors)
    use_model(base / "model.gguf")


def try_gguf(base: Path, work: Path, rng: random.Random, number: int) -> None:
    path = work / "model.gguf"
    path.write_bytes(mutate_bytes((base / "model.gguf").read_bytes(), rng))
    use_model(path)


TEMPLATE_PARTS = (
    CHATML, "{{ messages }}", "{% for m in messages %}", "{% endfor %}", "{{ m.content }}", "{{ m['role'] | upper }}",
    "{% if add_generation_prompt %}", "{% endif %}", "{% set ns = namespace(x='a') %}", "{{ ns.x }}",
    "{% set ns.x = ns.x + ns.x %}", "{{ bos_token }}", "{{ eos_token * 3 }}", "{{ ''.__class__ }}", "{{ tools[0].x }}",
    "{{ raise_exception('no\x1b[31m\n') }}", "{{ raise_exception('long' * 9999) }}", "{{ 1 / 0 }}", "{{ none.x }}",
    "{{ messages | tojson(indent=2) }}", "{{ strftime_now('%d %b %Y') }}", "{{ messages[99] }}", "{{ 'a' * 10 ** 10 }}",
    "{% for i in range(99999) %}", "{% macro f(x) %}{{ f(x) }}{% endmacro %}{{ f(1) }}", "{% break %}", "{{", "%}",
    "{% generation %}", "{% endgeneration %}", "{{ 2 ** 2 ** 30 }}", "{{ (messages | list) * 9 ** 9 }}", "\x00",
    "{% include 'x' %}", "{{ '%99999999d' % 1 }}", "{{ 'x'.center(9 ** 9) }}", "{{ '{:>999999999}'.format(1) }}",
)  # fmt: skip


def try_template(base: Path, work: Path, rng: random.Random, number: int) -> None:
    parts = [rng.choice(TEMPLATE_PARTS) for _ in range(rng.randint(1, 6))]
    data = "".join(parts).encode()
    template = (mutate_bytes(data, rng) if rng.random() < 0.3 else data).decode(errors="replace")
    (work / "template.jinja").write_text(template)
    chat_template.render(template, [{"role": "user", "content": "Hi"}], bos_token="<s>", eos_token="</s>")


def make_results(base: Path) -> None:
    if not (base / "results.jsonl").exists():
        write(base / "results.jsonl", RUN, record(), record("octavo:reference"))


def try_results(base: Path, work: Path, rng: random.Random, number: int) -> None:
    lines = (base / "results.jsonl").read_text().splitlines()
    chosen = rng.randrange(len(lines))
    texts = [mutate_text(line, rng) if i == chosen else line.encode() for i, line in enumerate(lines)]
    path = work / "results.jsonl"
    path.write_bytes(b"\n".join([*texts, b""]))
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        code = bench("compare", base / "results.jsonl", path)
    if code == 2:
        raise RefusedError(said.getvalue().removesuffix("\n"))


def make_machine(base: Path) -> None:
    make_folder(base)
    machine.prepare(base / "folder")


def try_machine(base: Path, work: Path, rng: random.Random, number: int) -> None:
    run_state_machine_as_test(seeded(rng.getrandbits(60))(machine.Machine), settings=machine.SETTINGS)


class Served:
    """The LLM that interrupts and failed allocations fall into, and what it answers when nothing happens."""

    llm: Any
    want: Any
    counts: dict[Any, int]


def make_served(base: Path) -> None:
    if not hasattr(Served, "llm"):
        make_folder(base)
        Served.llm = load_tiny(base / "folder", **interrupted.TIGHT)
        Served.want, Served.counts = ids_of(Served.llm, interrupted.PROMPTS), {}


def turn(number: int, count: Callable[[str, bool], int]) -> tuple[str, bool, int]:
    """The door, whether on the engine's thread, and the n-th of its so many events: in the end each of them once."""
    name = list(interrupted.DOORS)[number % 4]
    on_engine, step = bool(number // 4 % 2), number // 8
    if (name, on_engine, count) not in Served.counts:
        Served.counts[name, on_engine, count] = count(name, on_engine)
    return name, on_engine, 1 + step * 7919 % Served.counts[name, on_engine, count]


def walk(name: str, on_engine: bool, counter: LineCounter) -> int:
    run_counted(lambda: interrupted.DOORS[name](Served.llm), counter, Served.llm.thread.call if on_engine else None)
    return counter.count


def count_lines(name: str, on_engine: bool) -> int:
    return walk(name, on_engine, LineCounter())


def try_interrupt(base: Path, work: Path, rng: random.Random, number: int) -> None:
    name, on_engine, target = turn(number, count_lines)
    counter = LineCounter(target)
    walk(name, on_engine, counter)
    _recover(f"{name}, line {target}, at {counter.place}")


FACTORIES = ("empty", "empty_like", "zeros", "zeros_like", "ones", "full", "tensor", "as_tensor", "arange", "cat",
             "stack", "where", "from_numpy")  # fmt: skip


@contextlib.contextmanager
def failing_allocation(target: int) -> Any:
    """The target-th tensor that Python asks for is refused; how many were asked for."""
    asked = [0]

    def counted(make: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            asked[0] += 1
            if asked[0] == target:
                raise MemoryError("not another tensor")
            return make(*arguments, **options)

        return call

    before = {name: getattr(torch, name) for name in FACTORIES}
    try:
        for name, make in before.items():
            setattr(torch, name, counted(make))
        yield asked
    finally:
        for name, make in before.items():
            setattr(torch, name, make)


def count_tensors(name: str, on_engine: bool) -> int:
    with failing_allocation(0) as asked:
        interrupted.DOORS[name](Served.llm)
    return max(1, asked[0])


def try_allocation(base: Path, work: Path, rng: random.Random, number: int) -> None:
    name, _, target = turn(number, count_tensors)
    with failing_allocation(target), contextlib.suppress(MemoryError):
        interrupted.DOORS[name](Served.llm)
    _recover(f"{name}, tensor {target}")


def _recover(where: str) -> None:
    try:
        interrupted.recovered(Served.llm, Served.want)
    except BaseException as error:
        llm, counts = Served.llm, Served.counts
        del Served.llm  # broken for good: the next input gets another
        del llm, counts
        raise AssertionError(f"after {where}: {type(error).__name__}: {error}") from error


def misbehave(base: Path, work: Path, rng: random.Random, number: int) -> None:
    """What the watchdog has to see, for its own tests."""
    if number == 0:
        time.sleep(3600)
    if number == 1:
        os.abort()
    if number == 2:
        torch.ones(500 * 2**20, dtype=torch.uint8)
    if number == 3:
        raise KeyError("x")
    if number == 4:
        raise ValueError("two\nlines")
    if number == 5:
        raise ValueError("n" * 1000)
    if number == 6:
        raise ValueError("one clear line")


DOORS = {
    "model folder": Door(make_folder, try_folder),
    "GGUF file": Door(make_gguf, try_gguf),
    "chat template": Door(nothing, try_template),
    "results file": Door(make_results, try_results),
    "state machine": Door(make_machine, try_machine),
    "interrupt": Door(make_served, try_interrupt),
    "failed allocation": Door(make_served, try_allocation),
    "a door that misbehaves": Door(nothing, misbehave),
}

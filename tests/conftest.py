"""What every test gets: the interpreter where there is no GPU, files fetched once, and an oracle read once."""

import os
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from counted import ran

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # read when a kernel is defined, so before any is imported

if os.environ.get("TRITON_INTERPRET") == "1":
    import interpreter

    interpreter.install()

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> None:
    """What the test counted travels with its report, from whichever process runs it."""
    if call.when == "call":
        item.user_properties.extend(("examples", entry) for entry in ran.items())
        ran.clear()


def pytest_terminal_summary(terminalreporter: Any) -> None:
    totals: Counter[str] = Counter()
    for report in (report for reports in terminalreporter.stats.values() for report in reports):
        if getattr(report, "when", None) == "call":
            totals.update({suite: examples for name, (suite, examples) in report.user_properties if name == "examples"})
    for suite, examples in sorted(totals.items()):
        terminalreporter.write_line(f"{suite}: {examples:,} examples")


@pytest.fixture
def guarded_memory(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Whatever the tested code allocates is NaN between guards, and the guards survive the test."""
    from guarded import GuardedMemory

    memory = GuardedMemory()
    monkeypatch.setattr(torch, "empty", memory.empty)
    monkeypatch.setattr(torch, "empty_like", memory.empty_like)
    yield
    assert memory.intact(), "a kernel wrote outside its output"


def fetched(fetch: Callable[[], Path]) -> Path:
    """A file from the cache folder; a test that needs it is skipped where it is not there and cannot be fetched."""
    try:
        return fetch()
    except ValueError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def smollm2_path() -> Path:
    """SmolLM2-135M-Instruct as a GGUF file; OCTAVO_TEST_GGUF names one that is at hand."""
    from octavo.gpt.loading import hub

    at_hand = os.environ.get("OCTAVO_TEST_GGUF")
    return Path(at_hand) if at_hand else fetched(lambda: hub.resolve("smollm2"))


@pytest.fixture(scope="session")
def gpt2_vocabulary_path() -> Path:
    """GPT-2's vocabulary as a `.tiktoken` file."""
    from octavo.gpt.loading import hub

    return fetched(hub.gpt2_vocabulary)


@pytest.fixture(scope="session")
def transformers_smollm2(smollm2_path: Path) -> Any:
    """SmolLM2 as transformers reads the same file, in float32: an oracle for all tests, which leave it as it is."""
    transformers = pytest.importorskip("transformers")
    return transformers.AutoModelForCausalLM.from_pretrained(
        smollm2_path.parent, gguf_file=smollm2_path.name, dtype=torch.float32
    ).eval()

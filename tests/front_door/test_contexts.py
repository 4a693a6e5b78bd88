"""The caller's PyTorch settings reach no token: autocast, default device and dtype, threads. New weights do."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_folder import ids_of, load_tiny, save_tiny
from torch import Tensor

from octavo.gpt import LLM, SamplingParams
from octavo.gpt.runner.threads import quota

FORMS = [("float32", "auto"), ("bfloat16", "auto"), ("float16", "auto"), ("bfloat16", "q8_0")]
PROMPTS: list[Any] = [[1, 2, 3, 4], [9, 8, 7], "the quick brown"]
PARAMS = [
    SamplingParams(temperature=0, max_tokens=12, ignore_eos=True),
    SamplingParams(seed=3, top_p=0.9, max_tokens=12, ignore_eos=True),
    SamplingParams(seed=4, repetition_penalty=1.2, logprobs=1, max_tokens=12, ignore_eos=True),
]


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


CONTEXTS: dict[str, Any] = {
    "autocast": lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    "meta device": lambda: torch.device("meta"),
    "bfloat16": lambda: default_dtype(torch.bfloat16),
    "float16": lambda: default_dtype(torch.float16),
    "float64": lambda: default_dtype(torch.float64),
    "inference mode": torch.inference_mode,
    "anomaly mode": torch.autograd.detect_anomaly,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("tiny"), hidden_size=48, num_hidden_layers=3)


def answers(llm: LLM) -> Any:
    return ids_of(llm, PROMPTS, PARAMS), llm.score(list(range(30))), llm.next_tokens([5, 6], 3)


@pytest.mark.filterwarnings("ignore:Anomaly Detection")
@pytest.mark.parametrize("context", CONTEXTS.values(), ids=CONTEXTS.keys())
@pytest.mark.parametrize(("dtype", "weights"), FORMS, ids=["float32", "bfloat16", "float16", "q8_0"])
def test_the_caller_s_context_changes_nothing(folder: Path, dtype: str, weights: str, context: Any) -> None:
    def check(around_load: AbstractContextManager, around_calls: AbstractContextManager) -> None:
        with around_load:
            llm = load_tiny(folder, dtype=dtype, weights=weights)
        with around_calls:
            assert answers(llm) == want
        llm.close()

    with load_tiny(folder, dtype=dtype, weights=weights) as plain:
        want = answers(plain)
    nothing = torch.enable_grad
    check(context(), nothing())
    check(nothing(), context())


SCRIPT = """
import sys
from octavo.gpt import SamplingParams
from tiny_folder import ids_of, load_tiny
llm = load_tiny(sys.argv[1], dtype=sys.argv[2], weights=sys.argv[3], num_blocks=512)
params = SamplingParams(temperature=0, max_tokens=20, ignore_eos=True)
print(ids_of(llm, [[i, 2, 3] * (1 + i % 7) for i in range(12)], params))
"""


@pytest.mark.parametrize(
    ("dtype", "weights"), [pytest.param("float32", "auto", marks=pytest.mark.slow), ("bfloat16", "q8_0")]
)
def test_a_team_smaller_than_asked_for_computes_the_same(tmp_path: Path, dtype: str, weights: str) -> None:
    """Batch systems limit threads so; a team that trusts what it asked for leaves the missing threads' share undone."""
    folder = save_tiny(tmp_path, hidden_size=192, num_hidden_layers=2, intermediate_size=384)  # work for two threads

    def tokens(**environment: str) -> str:
        environment = {**os.environ, "OMP_NUM_THREADS": "2", "PYTHONPATH": os.pathsep.join(sys.path), **environment}
        command = [sys.executable, "-c", SCRIPT, str(folder), dtype, weights]
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
        assert done.returncode == 0, done.stderr
        return done.stdout

    want = tokens()
    for environment in ({"OMP_THREAD_LIMIT": "1"}, {"OMP_DYNAMIC": "true"}, {"OMP_NUM_THREADS": "1"}):
        assert tokens(**environment) == want, environment


def test_a_container_s_quota_is_read(tmp_path: Path) -> None:
    quotas = {"150000 100000\n": 2, "50000 100000\n": 1, "max 100000\n": 2**31 - 1, "": 2**31 - 1}
    for text, processors in quotas.items():
        (tmp_path / "cpu.max").write_text(text)
        assert quota(tmp_path / "cpu.max") == processors
    assert quota(tmp_path / "none") == 2**31 - 1


@pytest.mark.parametrize("weights", ["auto", "q8_0"])
def test_replaced_and_written_weights_are_followed(folder: Path, tmp_path: Path, weights: str) -> None:
    """Captured steps and cached prefixes of the old weights are gone with the first request that comes after."""
    other_folder = save_tiny(tmp_path / "other", hidden_size=48, num_hidden_layers=3, rms_norm_eps=1e-2)
    with load_tiny(folder, weights=weights) as llm, load_tiny(other_folder, weights=weights) as other:
        with torch.no_grad():
            for parameter in other.model.parameters():
                parameter.mul_(-1.5)
        before, want = answers(llm), ids_of(other, PROMPTS, PARAMS)
        assert before[0] != want
        for mine, theirs in zip(llm.model.modules(), other.model.modules(), strict=True):
            tensors = dict(theirs.named_parameters(recurse=False)) | dict(theirs.named_buffers(recurse=False))
            for name, value in (tensors | vars(theirs)).items():
                if isinstance(value, Tensor | tuple) or name == "eps":
                    setattr(mine, name, value)
        assert ids_of(llm, PROMPTS, PARAMS) == want
        with torch.no_grad():
            for parameter in llm.model.parameters():
                parameter.mul_(1.25)
        changed = ids_of(llm, PROMPTS, PARAMS)
        assert changed != want
        llm.engine.forget_all()
        llm.engine.runner.step.forget()
        assert ids_of(llm, PROMPTS, PARAMS) == changed


@pytest.mark.parametrize(
    ("first", "environment", "expected"),
    [
        ("", {}, "10000"),
        ("import torch", {}, "None"),  # too late: the library has read it
        ("", {"GOMP_SPINCOUNT": "7"}, "7"),
        ("", {"OMP_WAIT_POLICY": "PASSIVE"}, "None"),
    ],
    ids=["unset", "PyTorch first", "the user's count", "the user's policy"],
)
def test_waiting_threads_leave_the_cores_to_others(first: str, environment: dict[str, str], expected: str) -> None:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("GOMP_", "OMP_"))}
    script = f"{first}\nimport os, octavo.gpt\nprint(os.environ.get('GOMP_SPINCOUNT'))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=clean | environment)
    assert done.stdout.strip() == expected


def test_one_team_at_a_time_is_alive(folder: Path) -> None:
    """libgomp lets no thread wait awake once all teams together have more threads than there are cores."""

    def threads() -> int:
        return len(os.listdir("/proc/self/task"))

    def work() -> None:
        torch.ones(512, 512) @ torch.ones(512, 512)

    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        with load_tiny(folder) as llm:
            llm.thread.call(work)
            work()
            both = threads()
            llm.stats()  # the caller's team goes when the engine is asked, the engine's when nothing is asked any more
            time.sleep(0.5)
            assert threads() <= both - 4
            assert ids_of(llm, PROMPTS)
    finally:
        torch.set_num_threads(before)


def test_a_full_team_has_a_core_for_each_and_a_smaller_one_goes_where_there_is_room(folder: Path) -> None:
    before, cores = torch.get_num_threads(), os.sched_getaffinity(0)
    try:
        with load_tiny(folder) as llm:
            thread = llm.thread._thread
            assert thread is not None
            assert thread.native_id is not None
            for number in (len(cores), len(cores) + 1, len(cores)):
                torch.set_num_threads(number)
                llm.stats()
                want = ids_of(llm, PROMPTS)
                placed = os.sched_getaffinity(thread.native_id)
                assert placed == ({min(cores)} if number == len(cores) else cores)
                assert ids_of(llm, PROMPTS) == want
            assert os.sched_getaffinity(0) == cores, "the caller's own thread stays as it is"
    finally:
        torch.set_num_threads(before)

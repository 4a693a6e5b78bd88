"""The commands as processes: closed and full streams, terminals, signals. One line at most, never a traceback."""

import json
import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from textwrap import dedent
from typing import Any

import pytest
from tiny_folder import save_tiny

from octavo.gpt import LLM
from octavo.gpt.cli import process
from octavo.gpt.cli.console import PlainConsole

OCTAVO, BENCH = "octavo.gpt", "octavo.bench"
ESCAPE = "\x1b[2J\x1b]0;title\x07"


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("models") / "tiny")


def shell(module: str, line: str, redirection: str = "") -> subprocess.CompletedProcess[str]:
    command = f'"{sys.executable}" -m {module} {line} {redirection}'
    return subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=120, cwd="/")


def started(*arguments: Any, **options: Any) -> subprocess.Popen[bytes]:
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options
    return subprocess.Popen([sys.executable, "-m", OCTAVO, *map(str, arguments)], **pipes)


def on_terminal(*arguments: Any) -> str:
    """All that a terminal is sent by the command."""
    ours, theirs = pty.openpty()
    child = started(*arguments, stdout=theirs, stderr=theirs, env={**os.environ, "NO_COLOR": "1", "TERM": "xterm"})
    os.close(theirs)
    pieces = []
    try:
        while piece := os.read(ours, 65536):
            pieces.append(piece)
    except OSError:  # Linux' end of file of a terminal
        pass
    os.close(ours)
    child.wait(60)
    return b"".join(pieces).decode()


def test_the_end_of_the_process_waits_for_a_dropped_llm_to_be_freed(model):
    program = f"""
        import time
        from octavo.gpt import LLM
        class Slow:
            def __del__(self): time.sleep(1); print("freed", flush=True)
        llm = LLM({str(model)!r}, backend="reference")
        llm.thread.freed_last = Slow()
        del llm
        time.sleep(0.3)  # its thread is past the last step"""
    done = subprocess.run([sys.executable, "-c", dedent(program)], capture_output=True, text=True)
    assert (done.stdout, done.stderr, done.returncode) == ("freed\n", "", 0)


@pytest.mark.parametrize(
    ("module", "line", "redirection", "code", "message"),
    [
        (OCTAVO, "models", ">&-", 2, "octavo: standard output is closed\n"),
        (OCTAVO, "models", ">/dev/full", 2, "octavo: No space left on device\n"),
        (OCTAVO, "models --json", ">/dev/full", 2, "octavo: No space left on device\n"),
        (OCTAVO, "--help", ">/dev/full", 2, "octavo: No space left on device\n"),
        (OCTAVO, "models", "2>&- >/dev/full", 2, ""),
        (OCTAVO, "models --wrong", "2>/dev/full", 2, ""),
        (OCTAVO, "models --wrong", "2>&-", 2, ""),
        (OCTAVO, "score no-such-file", "<&-", 2, "octavo: no-such-file: No such file or directory\n"),
        (OCTAVO, "models", "| true; exit ${PIPESTATUS[0]}", 0, ""),
        (OCTAVO, "models --json", "| true; exit ${PIPESTATUS[0]}", 0, ""),
        (OCTAVO, "--help", "| true; exit ${PIPESTATUS[0]}", 0, ""),
        (BENCH, "--help", ">&-", 0, ""),
        (BENCH, "--help", ">/dev/full", 2, "octavo.bench: No space left on device\n"),
        (BENCH, "compare a b", ">&-", 2, "octavo.bench: a: no such file of results\n"),
    ],
)
@pytest.mark.parametrize("unbuffered", ["", "1"], ids=["buffered", "unbuffered"])
def test_streams_that_are_closed_full_or_gone(module, line, redirection, code, message, unbuffered, monkeypatch):
    monkeypatch.setenv("PYTHONUNBUFFERED", unbuffered)
    done = shell(module, line, redirection)
    assert (done.returncode, done.stderr) == (code, message)


def test_a_closed_stream_s_number_goes_to_no_file_of_ours(tmp_path):
    """Else what is printed would be written into the file that was opened next."""
    program = (
        "import sys; from octavo.gpt.cli.process import _open_closed_streams; _open_closed_streams(); "
        f"file = open({str(tmp_path / 'x')!r}, 'w'); sys.stderr.write(str(file.fileno()))"
    )
    done = subprocess.run(["bash", "-c", f'"{sys.executable}" -c "{program}" >&- <&-'], capture_output=True, text=True)
    assert int(done.stderr) > 2


@pytest.mark.parametrize("line", ["--version", "--help", "models", "generate", "generate Hi --device tpu"])
def test_what_needs_no_model_imports_no_pytorch(line):
    program = (
        f"import sys; sys.modules['torch'] = None\nfrom octavo.gpt.cli import main\nsys.exit(main({line.split()!r}))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert "torch" not in done.stderr
    assert done.returncode == (2 if "generate" in line else 0)


@pytest.mark.parametrize("module", [OCTAVO, BENCH])
def test_version(module):
    assert shell(module, "--version").stdout == f"octavo {__import__('octavo.gpt').gpt.__version__}\n"


@pytest.mark.parametrize("delay", [0.25, 0.6, 1.2])
def test_ctrl_c_while_pytorch_is_imported_is_quiet(model, delay):
    child = started("generate", "Hi", "--model", model, "--max-tokens", "100000", preexec_fn=_default_interrupt)
    time.sleep(delay)
    child.send_signal(signal.SIGINT)
    _, error = child.communicate(timeout=30)
    assert (child.returncode, error.strip()) == (130, b"")


def _default_interrupt() -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)


LONG_STEP = """
import time
from octavo.gpt.engine import Engine
def step(self):
    print("computing", flush=True)
    time.sleep(60)
Engine.step = step
"""
DEEP_IN_A_LIBRARY = """
import hashlib
import octavo.gpt
def load(*arguments, **options):
    print("computing", flush=True)
    hashlib.pbkdf2_hmac("sha256", b"x", b"y", 10**9)
octavo.gpt.LLM = load
"""
MAIN = """
import sys
from octavo.gpt.cli import main
sys.argv[1:] = {arguments!r}
sys.exit(main())
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(
    ("what", "options"),
    [(LONG_STEP, []), (LONG_STEP, ["--json"]), (DEEP_IN_A_LIBRARY, [])],
    ids=["stream", "json", "library"],
)
def test_a_signal_ends_it_at_once_whatever_it_is_doing(model, number, what, options):
    program = what + MAIN.format(arguments=["generate", "the", "--model", str(model), *options])
    child = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, preexec_fn=_default_interrupt
    )
    assert child.stdout is not None
    assert child.stdout.readline() == b"computing\n"
    began = time.monotonic()
    child.send_signal(number)
    _, error = child.communicate(timeout=30)
    assert (child.returncode, error.strip()) == (128 + number, b"")
    assert time.monotonic() - began < 10


@pytest.fixture
def handlers():
    before = {number: signal.getsignal(number) for number in process.ENDING}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def test_an_ignored_interrupt_stays_ignored(handlers):
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    process._end_on_signals(None)
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    assert process.run("octavo", lambda: signal.raise_signal(signal.SIGTERM)) == 143


SWALLOWED = """
import sys, time
try:
    print("importing", flush=True)
    time.sleep(60)
except KeyboardInterrupt:
    pass
"""
AFTER_THE_WORK = """
import atexit, time
atexit.register(lambda: (print("leaving", flush=True), time.sleep(60)))
"""


@pytest.mark.parametrize("module", ["octavo.gpt.cli", "octavo.bench.__main__"])
@pytest.mark.parametrize("when", ["importing", "leaving"])
def test_a_signal_outside_of_the_work_ends_it_at_once(module, when, tmp_path):
    """A library that swallows the interrupt while it is imported; the interpreter on its way out."""
    (tmp_path / "swallowing.py").write_text(SWALLOWED)
    setup = AFTER_THE_WORK if when == "leaving" else f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
    work = "0" if when == "leaving" else "__import__('swallowing')"
    program = (
        f"{setup}\nimport {module} as command\nfrom octavo.gpt.cli import process, commands\nimport sys\n"
        f"{'commands' if module == 'octavo.gpt.cli' else 'command'}._run = lambda argv: {work} and 0\n"
        "sys.exit(command.main())"
    )
    child = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert child.stdout is not None
    assert child.stdout.readline().strip().decode() == when
    child.send_signal(signal.SIGTERM)
    _, error = child.communicate(timeout=30)
    assert (child.returncode, error) == (143, b"")


def failing(error: BaseException) -> Callable[[], int]:
    def work() -> int:
        raise error

    return work


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (PermissionError(13, "Permission denied", "/models/[x]"), "/models/[x]: Permission denied"),
        (OSError(28, "No space left on device"), "No space left on device"),
        (OSError("a.gguf: cut short"), "a.gguf: cut short"),
        (IsADirectoryError(21, "Is a directory", b"/a\xff"), r"/a\udcff: Is a directory"),
        (MemoryError(), "out of memory"),
        (RuntimeError(), "RuntimeError"),
        (OverflowError("math range error"), "math range error"),
        (ImportError("libtorch.so: not found"), "libtorch.so: not found"),
        (ValueError(f"architecture {ESCAPE}\n\u2028\x85 [bold]"), r"architecture \x1b[2J\x1b]0;title\x07 [bold]"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_every_error_is_one_line(error, line, capsys):
    assert process.run("octavo", failing(error)) == 2
    assert capsys.readouterr().err == f"octavo: {line}\n"


def test_a_fault_of_our_own_is_not_hidden():
    with pytest.raises(KeyError):
        process.run("octavo", failing(KeyError("x")))


def test_names_on_a_console_are_no_markup(capsys):
    console = PlainConsole(width=80)
    console.print(rf"a[bold]b :smile: \[c] {ESCAPE}")
    assert capsys.readouterr().out == r"a[bold]b :smile: \[c] \x1b[2J\x1b]0;title\x07" + "\n"


@pytest.fixture(scope="module")
def loud(model) -> list[Any]:
    """Arguments of a model that writes the escape character again and again."""
    llm = LLM(model, backend="reference", dtype="float32")
    (token_id,) = llm.tokenizer.encode("\x1b")
    llm.close()
    return [
        "generate",
        "x",
        "--model",
        model,
        "--temperature",
        "0",
        "--max-tokens",
        "3",
        "--logit-bias",
        f"{token_id}=100",
    ]


@pytest.mark.slow
def test_a_terminal_is_shown_what_a_pipe_is_sent(loud):
    assert on_terminal(*loud).strip() == r"\x1b" * 3
    assert on_terminal(*loud, "--raw").strip() == "\x1b" * 3
    out, _ = started(*loud).communicate(timeout=60)
    assert out == b"\x1b\x1b\x1b\n"
    assert on_terminal(*loud, "--n", "2").count(r"\x1b" * 3) == 2
    assert json.loads(on_terminal(*loud, "--json"))["outputs"][0]["text"] == "\x1b" * 3


@pytest.mark.parametrize("word", [ESCAPE, "a\nb\u2028c", "x" * 5000], ids=["control", "lines", "long"])
def test_what_a_file_says_is_no_command_to_a_terminal(word, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"architectures": [word]}))
    (line,) = on_terminal("generate", "x", "--model", tmp_path).splitlines()
    assert line.startswith("octavo: ")
    assert line.isprintable()
    assert len(line) < 1100

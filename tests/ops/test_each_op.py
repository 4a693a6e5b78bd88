"""Every op once in a process of its own: as it is, with memory that is never reused, and under memcheck."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = [sys.executable, str(Path(__file__).parent.parent / "helpers" / "each_op.py")]
NO_CACHING = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}


def finished(command, **environment):
    return subprocess.run(command, capture_output=True, text=True, env=os.environ | environment)


def test_every_op_is_right():
    """Small shapes that fill no tile, through the code that times them."""
    done = finished(PROGRAM)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "right" in done.stdout


@pytest.mark.gpu
def test_no_op_uses_what_it_freed():
    """Without PyTorch's caching a freed workspace is gone, and its use an error."""
    done = finished(PROGRAM, **NO_CACHING)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.gpu
def test_memcheck_finds_no_access_outside_of_allocations():
    checker = shutil.which("compute-sanitizer")
    if checker is None:
        pytest.skip("compute-sanitizer is not installed: it comes with the CUDA toolkit")
    command = [checker, "--tool", "memcheck", "--error-exitcode", "3", *PROGRAM]
    done = finished(command, **NO_CACHING)
    assert done.returncode == 0, done.stdout + done.stderr

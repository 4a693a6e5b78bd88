"""`bench decode --llama-bench` prints what llama-bench prints."""

import re

from octavo.bench.measuring import llama_bench

from bench_tiny import bench, checkpoint


def test_rows_are_those_of_llama_bench(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(llama_bench, "PROMPT", 20)
    monkeypatch.setattr(llama_bench, "GENERATED", 5)
    monkeypatch.setattr(llama_bench, "REPEATS", 2)
    model = checkpoint(tmp_path / "gpt2", "gpt2")
    arguments = ("--model", model, "--backend", "cpu,reference", "--dtype", "float32", "--threads", "1")
    assert bench("decode", *arguments, "--llama-bench") == 0
    header, rule, *lines = [
        [cell.strip() for cell in line.split("|")[1:-1]] for line in capsys.readouterr().out.splitlines()
    ]
    assert header == ["model", "size", "params", "backend", "threads", "test", "t/s"]
    assert [cell.strip("-") for cell in rule] == ["", ":", ":", "", ":", ":", ":"]
    assert [(line[3], line[5]) for line in lines] == [
        ("octavo:cpu", "pp20"), ("octavo:cpu", "tg5"), ("octavo:reference", "pp20"), ("octavo:reference", "tg5"),
    ]  # fmt: skip
    assert all(re.fullmatch(r"\d+\.\d\d ± \d+\.\d\d", line[6]) for line in lines)
    monkeypatch.setattr(llama_bench, "PROMPT", 512)
    assert bench("decode", *arguments, "--llama-bench") == 2
    assert "--llama-bench needs a window of 514 tokens" in capsys.readouterr().err

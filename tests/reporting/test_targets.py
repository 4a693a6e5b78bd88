"""report --targets: the wanted ratios beside the measured ones."""

from dataclasses import replace

import pytest

from octavo.bench.reporting import targets

from bench_tiny import RUN, bench, record, write

SMOLLM2 = {"model": "smollm2", "context": 128}
LINES = [
    record(step=0.01, **SMOLLM2, bandwidth_share=0.849), record("llama.cpp", step=0.0136, **SMOLLM2),
    record("transformers", step=0.029, **SMOLLM2), record(step=0.01, dtype="file", **SMOLLM2),
    record("openvino:file", step=0.05, dtype="file", **SMOLLM2),
    record(step=0.01, dtype="q8_0", **SMOLLM2),
    record("llama.cpp:q8_0", step=0.02, dtype="q8_0", **SMOLLM2, verdict="wrong"),
    record(step=0.01, dtype="q8_0", model="smollm2", context=512, ttft_s=[0.1], prompt_tokens=512),
    record("llama.cpp:q8_0", dtype="q8_0", model="smollm2", context=512, ttft_s=[0.2], prompt_tokens=512),
]  # fmt: skip


def word(dtype, peer, place):
    found = [
        score for score in targets.scores(LINES)
        if (score.target.dtype, score.target.peer, score.target.place) == (dtype, peer, place)
    ]  # fmt: skip
    assert len(found) == 1
    return found[0].word


def test_what_is_reached_and_what_is_not():
    assert word("float32", "llama.cpp", targets.SHORT) == "yes"  # 1.36 of 1.35
    assert word("float32", "transformers", targets.SHORT) == "no"  # 2.9 of 3
    assert word("float32", "", targets.Place(1, 128, targets.BANDWIDTH)) == "no"
    assert word("file", "openvino", targets.SHORT) == "yes"
    assert word("q8_0", "llama.cpp", targets.PROMPT) == "no"  # 2 of 2.3
    assert word("q8_0", "llama.cpp", targets.SHORT) == "not measured"  # its tokens were wrong
    assert word("bfloat16", "llama.cpp", targets.BATCH) == "not measured"
    assert {score.target.model for score in targets.scores(LINES)} == {"smollm2"}


def test_they_are_printed_from_a_folder(tmp_path, capsys):
    write(tmp_path / "decode.jsonl", RUN, *LINES)
    assert bench("report", "--targets", tmp_path) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "| smollm2 float32 | 1 x 128 | decode tok/s | 100 | llama.cpp | 73.5 | 1.36 | 1.35 | yes |" in lines
    assert "| smollm2 float32 | 1 x 128 | share of bandwidth | 0.85 | - | - | 0.85 | 0.85 | no |" in lines
    wanted = len(targets.scores(LINES))
    assert f"2 of {wanted} targets reached, {wanted - 6} not measured." in lines
    assert not (tmp_path / "report.md").exists()


@pytest.mark.parametrize("model", ["tiny", "smollm2"])
def test_a_run_without_targets_says_so(model, tmp_path, capsys):
    command = "decode" if model == "tiny" else "host"
    write(tmp_path / "a.jsonl", replace(RUN, command=command), *([record()] if model == "tiny" else []))
    code = bench("report", "--targets", tmp_path)
    said = capsys.readouterr()
    if model == "tiny":
        assert (code, "_No target is known for tiny._" in said.out) == (0, True)
    else:
        assert (code, said.err) == (2, "octavo.bench: targets are those of decode, and there is no run of it\n")

"""What got slower: a planted slowdown is caught, two runs of the same commit are not called different."""

import random
from dataclasses import replace

import pytest

from octavo.bench.compare import compare, together
from octavo.bench.reporting.schema import Host, Op

from bench_tiny import RUN, bench, record, scene, served, write

PLANTED = 1.20
NAMES = ("octavo:cpu", "octavo:reference", "transformers")


def run_of(seed, slower=None, drift=0.02, jitter=0.08, repeats=3):
    """A grid as a machine gives it: every repeat drifts a little, every step jitters, now and then one is late."""
    generator = random.Random(seed)
    cells = []
    for name in NAMES:
        for batch in (1, 8):
            base = 0.01 * batch**0.5 * (PLANTED if (name, batch) == slower else 1.0)
            pace = [base * generator.gauss(1, drift) for _ in range(repeats)]
            late = [[10 if generator.random() < 0.02 else 1 for _ in range(32)] for _ in pace]
            steps = [
                [p * late * abs(generator.gauss(1, jitter)) for late in row] for p, row in zip(pace, late, strict=True)
            ]
            first = [12 * p * generator.gauss(1, drift) for p in pace]
            cells.append(record(name, batch=batch, step_s=steps, ttft_s=first))
    return cells


@pytest.mark.parametrize("seed", range(40))
def test_a_planted_slowdown_of_a_fifth_is_caught(seed):
    changes = list(compare(run_of(seed), run_of(seed + 1000, slower=("octavo:cpu", 8))))
    slower = {change.what for change in changes if change.status == "slower"}
    assert "octavo:cpu float32 batch 8 context 16 step" in slower
    assert slower <= {f"octavo:cpu float32 batch 8 context 16 {what}" for what in ("step", "first token")}


@pytest.mark.parametrize("seed", range(40))
def test_two_runs_of_the_same_commit_are_the_same(seed):
    changes = list(compare(run_of(seed), run_of(seed + 1000)))
    assert len(changes) == 12
    assert {change.status for change in changes} == {"same"}


def test_the_way_back_is_faster():
    changes = compare(run_of(1, slower=("octavo:reference", 1)), run_of(2))
    faster = [change for change in changes if change.status == "faster"]
    assert {change.what for change in faster} >= {"octavo:reference float32 batch 1 context 16 step"}


def test_noise_as_large_as_the_change_is_no_change():
    loud = record(step_s=[[0.008], [0.010], [0.014]], ttft_s=[0.1, 0.1, 0.1])
    slow = record(step_s=[[0.009], [0.012], [0.016]], ttft_s=[0.1, 0.1, 0.1])
    step, first = compare([loud], [slow])
    assert (step.status, first.status) == ("too noisy", "same")
    assert step.share == pytest.approx(0.2)
    assert step.noise == pytest.approx(0.3 + 0.007 / 2 / 0.012)


def restless(seed, scale=1.0):
    """A run on a machine so restless that a fifth is lost in every cell."""
    generator = random.Random(seed)

    def times(base):
        return [base * scale * generator.gauss(1, 0.1) for _ in range(5)]

    return [
        record(batch=batch, context=context, step_s=[[t] for t in times(0.01)], ttft_s=times(0.1))
        for batch in (1, 8)
        for context in (128, 512)
    ]


@pytest.mark.parametrize("seed", range(20))
def test_what_is_lost_in_each_cell_is_seen_over_all_of_them(seed):
    same, slow = (list(compare(restless(seed), restless(seed + 1000, scale))) for scale in (1.0, PLANTED + 0.05))
    assert {change.status for change in together(same)} <= {"same", "too noisy"}
    assert [(change.what, change.status) for change in together(slow)] == [("octavo:cpu float32, all 8", "slower")]


def probed(step: float, *seconds: float):
    return record(step=step, step_probe_s=list(seconds), prefill_probe_s=[2 * s for s in seconds])


def test_a_machine_that_changed_is_noise():
    """The same code on a machine half as fast is not called slower; three times as long is more than the machine."""
    calm = [probed(0.01, 0.02, 0.02, 0.02)]
    for scale, word in ((1.6, "too noisy"), (3.0, "slower")):
        assert {change.status for change in compare(calm, [probed(0.01 * scale, 0.03, 0.032, 0.031)])} == {word}
    assert {change.status for change in compare(calm, [probed(0.012, 0.0201, 0.0199, 0.0203)])} == {"slower"}
    assert {change.status for change in compare([record()], [record(step=0.012)])} == {"slower"}
    # A machine that became faster excuses nothing that became slower.
    assert {change.status for change in compare(calm, [probed(0.012, 0.016, 0.016, 0.016)])} == {"slower"}


def test_each_quantity_has_its_own_probe():
    """A machine that only multiplies more slowly excuses a later first token, not a longer step."""
    slow = replace(probed(0.014, 0.02, 0.02, 0.02), prefill_probe_s=[0.06, 0.06, 0.06])
    assert [change.status for change in compare([probed(0.01, 0.02, 0.02, 0.02)], [slow])] == ["slower", "too noisy"]


def test_many_repeats_tell_their_median_better_than_few():
    """Nine repeats leave one out at either end, so that one bad one is no noise; of three all count."""
    few, many = [[0.01], [0.01], [0.02]], [[0.01]] * 8 + [[0.02]]
    assert next(compare([record(step_s=few)], [record(step_s=few)])).noise == pytest.approx(1.0)
    assert next(compare([record(step_s=many)], [record(step_s=many)])).noise == 0


@pytest.mark.parametrize("kind", ["op", "host"])
def test_ops_and_steps_of_the_host_are_compared_too(kind):
    def made(scale):
        generator = random.Random(int(scale * 10))
        samples = [1e-4 * scale * generator.gauss(1, 0.05) for _ in range(200)]
        if kind == "host":
            return Host(64, 128, None, samples, 1500)
        return Op("linear", "8 x 9", "cpu", "float32", "same", "", samples, 1, 1, None, None)

    assert [change.status for change in compare([made(1.0)], [made(PLANTED)])] == ["slower"]
    assert [change.status for change in compare([made(1.0)], [made(1.01)])] == ["same"]


def test_loads_and_scenes_are_compared_too():
    changes = list(compare([served("open", 2)], [served("open", 2, gap=0.01 * PLANTED)]))
    assert [change.status for change in changes] == ["same", "slower"]
    assert changes[1].what == "cpu float32 open: 2 requests/s gap"
    assert [change.status for change in compare([served("open", 2)], [served("open", 2)])] == ["same", "same"]
    old, new = scene("together", 3.0, 3.05, 3.1), scene("together", 3.6, 3.65, 3.7)
    assert [change.status for change in compare([old], [new])] == ["slower"]
    assert [change.status for change in compare([old], [old])] == ["same"]
    assert [change.status for change in compare([scene("together", 3.0)], [scene("together", 3.9)])] == ["too noisy"]


def test_the_command_can_gate(tmp_path, capsys):
    old = write(tmp_path / "old.jsonl", RUN, *run_of(1))
    new = write(tmp_path / "new.jsonl", RUN, *run_of(2, slower=("octavo:cpu", 1)))
    assert bench("compare", old, old) == 0
    assert "0 of 10 of ours slower, 0 broken, 0 too noisy" in capsys.readouterr().out
    assert bench("compare", old, new) == 1
    assert "of 10 of ours slower, 0 broken" in capsys.readouterr().out
    assert bench("compare", new, old) == 0


def test_a_slower_peer_is_the_machine_and_no_reason_to_fail(tmp_path, capsys):
    old = write(tmp_path / "old.jsonl", RUN, *run_of(1))
    cells = [replace(c, step_s=[[2 * s for s in row] for row in c.step_s]) if ":" not in c.contender else c
             for c in run_of(2)]  # fmt: skip
    slow = replace(RUN, copy_bytes_per_s=1e10, read_bytes_per_s=1.5e10)
    assert bench("compare", old, write(tmp_path / "new.jsonl", slow, *cells)) == 0
    shown = capsys.readouterr().out
    assert "mind the machine first: the measured bandwidth changed by -50 % and the peers' times changed by" in shown


def test_what_was_right_and_is_wrong_now_fails(tmp_path, capsys):
    old = write(tmp_path / "old.jsonl", RUN, *run_of(1))
    spoiled = [replace(cell, verdict="wrong", detail="1 of 9") if cell.batch == 8 else cell for cell in run_of(1)]
    assert bench("compare", old, write(tmp_path / "new.jsonl", RUN, *spoiled)) == 1
    shown = capsys.readouterr().out
    assert "broken: octavo:cpu float32 batch 8 context 16: wrong 1 of 9" in shown
    assert "2 broken" in shown  # the peer's own mistake is not ours


@pytest.mark.parametrize(
    ("field", "value"), [("command", "ops"), ("device", "cuda"), ("device_name", "another"), ("threads", 1)]
)
def test_runs_that_cannot_be_compared(field, value, tmp_path, capsys):
    old = write(tmp_path / "old.jsonl", RUN, record())
    new = write(tmp_path / "new.jsonl", replace(RUN, **{field: value}), *([record()] if field != "command" else []))
    assert bench("compare", old, new) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"has {field} {getattr(RUN, field)}" in line


def test_nothing_in_common_is_said(tmp_path, capsys):
    old = write(tmp_path / "old.jsonl", RUN, record())
    new = write(tmp_path / "new.jsonl", RUN, record(batch=2))
    assert bench("compare", old, new) == 2
    assert "have nothing in common" in capsys.readouterr().err

"""A third of a minute of hostile input at every door (`make fuzz` takes ten), and the watchdog itself."""

import os
import random

import pytest
from fuzz import DOORS, OUT, Child, Tally, fuzz, main, table
from mutate import mutate_bytes, mutate_text

from counted import count


@pytest.fixture(scope="module")
def tallies():
    return fuzz(float(os.environ.get("FUZZ_SECONDS", "20")), int(os.environ.get("FUZZ_SEED", "0")))


@pytest.mark.parametrize("door", DOORS)
def test_every_input_is_used_or_refused_in_one_clear_line(door, tallies):
    tally = tallies[door]
    count(f"fuzz: {door}", tally.tried)
    assert tally.tried
    assert not tally.faults, "\n".join(tally.faults.values())


MISBEHAVIOUR = {
    0: "no answer within 5 s",
    1: "the process died with code -6",
    2: "took 50",
    3: "KeyError: 'x'",
    4: r"'\n' in the message 'two\nlines'",
    5: "a message of 1000 characters",
    6: "",
    7: "",
}


@pytest.mark.parametrize("number", MISBEHAVIOUR)
def test_the_watchdog_sees(number, tmp_path):
    child = Child(0, tmp_path)
    fault = child.ask("a door that misbehaves", number)["fault"]
    assert fault.startswith(MISBEHAVIOUR[number])
    assert MISBEHAVIOUR[number] or not fault
    child.stop()


@pytest.mark.slow
def test_a_hang_and_a_death_are_counted_and_the_rest_goes_on(tmp_path, capsys):
    (tally,) = fuzz(9, 0, ["a door that misbehaves"], tmp_path).values()
    assert tally.tried > 8
    assert tally.crashes == 6
    assert tally.deaths == 2
    assert tally.seconds >= 5
    assert tally.megabytes > 400
    assert "took 50" in (tmp_path / "a-door-that-misbehaves-0-2" / "fault.txt").read_text()
    shown = capsys.readouterr().out.splitlines()
    assert len(shown) == 6
    assert all(str(tmp_path) in line for line in shown)
    assert table({"x": tally}).splitlines()[1].split()[:3] == ["x", str(tally.tried), "6"]


def test_a_fault_is_exit_code_1(monkeypatch, capsys):
    monkeypatch.setattr("fuzz.fuzz", lambda seconds, seed: {"x": Tally(tried=2, crashes=1), "y": Tally()})
    assert main([]) == 1
    monkeypatch.setattr("fuzz.fuzz", lambda seconds, seed: {"x": Tally(tried=2)})
    assert main([]) == 0
    assert main(["results file", "0"]) == 0
    assert OUT.name == "fuzz"


def test_an_input_is_a_function_of_its_number():
    text = '{"a": [1, {"b": "c"}], "d": null}'
    first, again = ([mutate_text(text, random.Random(i)) for i in range(200)] for _ in range(2))
    assert first == again
    assert len(set(first)) > 150
    assert mutate_bytes(b"abc" * 99, random.Random(1)) == mutate_bytes(b"abc" * 99, random.Random(1))

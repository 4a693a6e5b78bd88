"""Split GGUF files: any part opens the others, and a part that is missing or lies is refused by its name."""

from pathlib import Path
from typing import Any

import pytest
import torch

from octavo.gpt.loading.loader import load_model
from octavo.kernels.ops import REFERENCE

from checkpoints import LLAMA_GGUF, llama_gguf_tensors, llama_tensors, save_gguf

COUNT = 3


def save_parts(folder: Path, **changes: dict[str, Any]) -> list[Path]:
    """A Llama in three files; changes are metadata of part one, two or three."""
    tensors = llama_gguf_tensors(llama_tensors(), 3, 1)
    paths = []
    for number, part in enumerate(("one", "two", "three")):
        path = folder / f"m-{number + 1:05}-of-{COUNT:05}.gguf"
        names = list(tensors)[number::COUNT] + changes.get(part, {}).pop("also", [])
        fields = {"split.no": number, "split.count": COUNT, "split.tensors.count": len(tensors)}
        fields = {"general.architecture": "llama"} | (LLAMA_GGUF if number == 0 else {}) | fields
        paths.append(save_gguf(path, fields | changes.get(part, {}), {name: tensors[name] for name in names}))
    return paths


def state(path: Path) -> dict[str, torch.Tensor]:
    return load_model(path, REFERENCE, "float32", "cpu").model.state_dict()


@pytest.mark.parametrize("named", range(COUNT))
def test_any_part_opens_all(tmp_path: Path, named: int) -> None:
    whole = save_gguf(tmp_path / "whole.gguf", LLAMA_GGUF, llama_gguf_tensors(llama_tensors(), 3, 1))
    found, expected = state(save_parts(tmp_path)[named]), state(whole)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_a_missing_part_is_named(tmp_path: Path) -> None:
    parts = save_parts(tmp_path)
    parts[1].unlink()
    with pytest.raises(FileNotFoundError, match=r"m-00002-of-00003\.gguf: this part of m-00001-of-00003.gguf is miss"):
        state(parts[0])


def test_a_part_by_another_name_is_refused(tmp_path: Path) -> None:
    renamed = save_parts(tmp_path)[0].rename(tmp_path / "m.gguf")
    with pytest.raises(ValueError, match=r"m\.gguf: one of 3 parts .* does not end in -00001-of-00003\.gguf"):
        state(renamed)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"two": {"split.no": 2}}, r"00002-of-00003.gguf: part 2 of 3 by its name, but split.no 2 of split.count 3"),
        ({"three": {"split.count": 2}}, r"00003-of-00003.gguf: part 3 of 3 .* split.no 2 of split.count 2 inside"),
        ({"one": {"split.tensors.count": 5}}, r"split.tensors.count is 5, the 3 parts have 21"),
        ({"one": {"split.count": 4}}, r"one of 4 parts by its split.count"),
        ({"one": {"split.count": "x"}}, r"split.count must be a positive integer, not 'x'"),
        ({"two": {"also": ["output.weight"]}}, r"tensor output.weight is also in m-0000\d-of-00003.gguf"),
    ],
)
def test_parts_that_lie_are_refused(tmp_path: Path, changes: dict[str, dict[str, Any]], message: str) -> None:
    parts = save_parts(tmp_path, **changes)
    with pytest.raises(ValueError, match=message):
        state(parts[0])

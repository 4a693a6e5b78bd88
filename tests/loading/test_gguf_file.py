"""The GGUF reader: every type it reads, bit for bit, and every lie it refuses, by name and before memory is taken."""

import struct
import time
import tracemalloc
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from octavo.gpt.loading.gguf_file import open_gguf

from checkpoints import save_gguf

READABLE = [
    "F32", "F16", "F64", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K",
    "IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS", "IQ3_S", "IQ4_NL", "IQ4_XS", "TQ1_0", "TQ2_0", "MXFP4",
]  # fmt: skip


def string(text: str) -> bytes:
    return struct.pack("<Q", len(text.encode())) + text.encode()


def key(name: str, kind: int, value: bytes) -> bytes:
    return string(name) + struct.pack("<I", kind) + value


def tensor(name: str, dims: list[int], kind: int = 0, offset: int = 0, num_dims: int | None = None) -> bytes:
    count = len(dims) if num_dims is None else num_dims
    return string(name) + struct.pack(f"<I{len(dims)}QIQ", count, *dims, kind, offset)


def build(
    keys: list[bytes] | None = None,
    tensors: list[bytes] | None = None,
    data: int = 64,
    magic: bytes = b"GGUF",
    version: int = 3,
    num_keys: int | None = None,
    num_tensors: int | None = None,
) -> bytes:
    """A GGUF file by hand; the counts may lie, and `data` bytes follow the aligned header."""
    keys, tensors = keys or [], tensors or []
    counts = (len(tensors) if num_tensors is None else num_tensors, len(keys) if num_keys is None else num_keys)
    header = magic + struct.pack("<IQQ", version, *counts) + b"".join(keys) + b"".join(tensors)
    return header + bytes(-len(header) % 32) + bytes(data)


GOOD = build(
    keys=[key("general.name", 8, string("tiny")), key("list", 9, struct.pack("<IQ3H", 2, 3, 1, 2, 3))],
    tensors=[tensor("a", [4, 2]), tensor("b", [8], offset=32)],
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.gguf"


def test_a_good_file_opens(path: Path) -> None:
    path.write_bytes(GOOD)
    file = open_gguf(path)
    assert file.metadata == {"general.name": "tiny", "list": [1, 2, 3]}
    assert file.tensors["a"].shape == (2, 4)
    assert [info.offset for info in file.tensors.values()] == [len(GOOD) - 64, len(GOOD) - 32]


@pytest.mark.parametrize("version", [2, 3])
def test_versions(path: Path, version: int) -> None:
    path.write_bytes(build(version=version))
    assert open_gguf(path).tensors == {}


@pytest.mark.parametrize("kind", READABLE)
def test_every_type_is_read_as_the_gguf_package_reads_it(path: Path, kind: str) -> None:
    number = gguf.GGMLQuantizationType[kind]
    block, block_bytes = gguf.GGML_QUANT_SIZES[number]
    rng = np.random.default_rng(0)
    raw = rng.integers(0, 120, (3, 2 * block_bytes), dtype=np.uint8)  # no exponent of all ones: finite in any type
    header = build(tensors=[tensor("w", [2 * block, 3], int(number))], data=0)
    path.write_bytes(header + raw.tobytes())
    file = open_gguf(path)
    if kind == "F64":  # the package does not widen it
        expected = torch.from_numpy(raw.view(np.float64))
    else:
        expected = torch.from_numpy(np.asarray(gguf.quants.dequantize(raw, number)))
    got = file.read("w")
    assert got.shape == (3, 2 * block)
    assert torch.equal(got.to(expected.dtype), expected)
    assert torch.equal(file.read("w", 1, 3), got[1:])


@pytest.mark.parametrize("kind", ["I8", "I16", "I32", "I64", "Q8_1", "Q8_K"])
def test_types_that_are_no_weights_are_refused_by_name(path: Path, kind: str) -> None:
    number = gguf.GGMLQuantizationType[kind]
    block, block_bytes = gguf.GGML_QUANT_SIZES[number]
    path.write_bytes(build(tensors=[tensor("w", [block], int(number))], data=block_bytes))
    with pytest.raises(ValueError, match=rf"model\.gguf: tensor w is of type {kind}"):
        open_gguf(path).read("w")


def test_metadata_of_every_type_matches_the_gguf_package(path: Path) -> None:
    fields: dict[str, Any] = {
        "general.architecture": "llama", "number": 7, "float": 0.5, "flag": True, "text": "naïve 👋🏽",
        "words": ["a", "", "Ġthe"], "ids": [1, -2, 3], "floats": [0.25, -1.5],
    }  # fmt: skip
    assert open_gguf(save_gguf(path, fields, {})).metadata == fields


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"not a GGUF file \(0 bytes\)"),
        (build(magic=b"GGML"), "not a GGUF file"),
        (build(version=1), "version 1 is not supported"),
        (build(version=3 << 24), "version 50331648 is not supported"),
        (build(num_keys=2**60), "the metadata claims 1,152,921,504,606,846,976 entries"),
        (build(num_tensors=2**60), "the list of tensors claims"),
        (build([key("k", 8, struct.pack("<Q", 2**62))]), "key k claims 4,611,686,018,427,387,904 bytes"),
        (build([key("k", 9, struct.pack("<IQ", 4, 2**61))]), "key k claims"),
        (build([key("k", 9, struct.pack("<IQ", 8, 2**61))]), "key k claims"),
        (build([key("k", 9, struct.pack("<IQ", 9, 1))]), "key k is an array of unsupported type 9"),
        (build([key("k", 77, b"")]), "key k has unknown type 77"),
        (build([key("k", 8, struct.pack("<Q", 2) + b"\xff\xfe")]), "key k is not valid UTF-8"),
        (build([key("k", 7, b"\1")] * 2), "key k stands twice"),
        (build([key("general.alignment", 4, struct.pack("<I", 48))]), "general.alignment must be a power of two"),
        (build([key("general.alignment", 8, string("x"))]), "general.alignment must be a power of two"),
        (build(tensors=[tensor("w", [4])] * 2), "tensor w stands twice"),
        (build(tensors=[tensor("w", [4], kind=99)]), "tensor w has unknown type 99"),
        (build(tensors=[tensor("w", [], num_dims=0)]), "tensor w has 0 dimensions"),
        (build(tensors=[tensor("w", [1] * 5)]), "tensor w has 5 dimensions"),
        (build(tensors=[tensor("w", [1], num_dims=2**31)]), "tensor w has 2,147,483,648 dimensions"),
        (build(tensors=[tensor("w", [4, 0])]), "tensor w .* does not divide into blocks"),
        (build(tensors=[tensor("w", [33], kind=8)]), r"tensor w \[33\] does not divide into blocks of 32 \(Q8_0\)"),
        (build(tensors=[tensor("w", [4], offset=4)]), "tensor w is not aligned to 32 bytes"),
        (build(tensors=[tensor("w", [17])]), "tensor w ends at byte 132, the file at byte 128"),
        (build(tensors=[tensor("w", [2**62, 2**62])]), "tensor w ends at byte"),
        (build(tensors=[tensor("w", [4], offset=2**63)]), "tensor w ends at byte"),
        (build(tensors=[tensor("a", [16]), tensor("b", [8], offset=32)]), "tensors a and b overlap at byte"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_lies_are_refused(path: Path, content: bytes, message: str) -> None:
    path.write_bytes(content)
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=rf"model\.gguf: .*{message}"):
            open_gguf(path)
        assert tracemalloc.get_traced_memory()[1] < 2**20
    finally:
        tracemalloc.stop()


def test_a_file_cut_anywhere_is_refused(path: Path) -> None:
    for length in range(len(GOOD)):
        path.write_bytes(GOOD[:length])
        with pytest.raises(ValueError, match=r"model\.gguf"):
            open_gguf(path)


@settings(max_examples=300, deadline=None)
@given(st.integers(4, len(GOOD) - 65), st.integers(0, 255), st.integers(4, len(GOOD) - 65), st.integers(0, 255))
def test_damaged_headers_open_or_are_refused(
    tmp_path_factory: pytest.TempPathFactory, place: int, value: int, other_place: int, other_value: int
) -> None:
    path = tmp_path_factory.getbasetemp() / "damaged.gguf"
    damaged = bytearray(GOOD)
    damaged[place], damaged[other_place] = value, other_value
    path.write_bytes(damaged)
    try:
        file = open_gguf(path)
    except ValueError:
        return
    assert all(info.offset + info.nbytes <= len(GOOD) for info in file.tensors.values())


@pytest.mark.model
def test_smollm2_opens_in_a_moment(smollm2_path: Path) -> None:
    def seconds() -> float:
        start = time.process_time()
        open_gguf(smollm2_path)
        return time.process_time() - start

    assert min(seconds() for _ in range(3)) < 0.3
    file = open_gguf(smollm2_path)
    assert len(file.tensors) == 272
    assert file.tensors["token_embd.weight"].shape == (49152, 576)
    assert file.metadata["tokenizer.ggml.tokens"][:2] == ["<|endoftext|>", "<|im_start|>"]

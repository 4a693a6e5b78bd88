"""A model family is one file: this one adds Ministral, with a window as long as its context, and touches nothing else.

Everything that asks a family something is asked here: loading, generating, scoring, both exports and the benchmarks.
transformers' own Ministral is the oracle.
"""

from dataclasses import dataclass

import pytest
import torch
import transformers

from octavo.bench.measuring.roofline import Peaks
from octavo.bench.peers.export_gguf import write_gguf
from octavo.bench.peers.export_hf import network
from octavo.bench.peers.sources import open_source, plain_model
from octavo.bench.reporting import records
from octavo.gpt import LLM, SamplingParams
from octavo.gpt.models import registry
from octavo.gpt.models.config_reader import ConfigReader, TensorSource
from octavo.gpt.models.families import llama
from octavo.gpt.models.family import Family

from bench_tiny import bench

PROMPTS = [[1, 2, 3, 4, 5], [9, 8, 7]]
GREEDY = SamplingParams(temperature=0, max_tokens=6, ignore_eos=True)


@dataclass(frozen=True, kw_only=True)
class ToyConfig(llama.LlamaConfig):
    family = "ministral"


class Toy(llama.Llama):
    """Llama's layers under Ministral's name."""


def from_hf(reader: ConfigReader) -> ToyConfig:
    return ToyConfig(
        **vars(llama.from_hf(ConfigReader(reader.path, reader.table | {"model_type": "llama", "sliding_window": None})))
    )


def from_gguf(reader: ConfigReader, file: TensorSource) -> ToyConfig:
    return ToyConfig(**vars(llama.from_gguf(reader, file)))


def to_hf(config: ToyConfig) -> dict:
    layers = {"sliding_window": config.context_size, "layer_types": ["full_attention"] * config.num_layers}
    return llama.to_hf(config) | {"model_type": "ministral"} | layers


TOY = Family(
    name="ministral",
    architectures=("MinistralForCausalLM",),
    network=Toy,
    from_hf=from_hf,
    from_gguf=from_gguf,
    to_hf=to_hf,
    to_gguf=llama.to_gguf,
    hf_names=llama.FAMILY.hf_names,
    gguf_names=llama.FAMILY.gguf_names,
    rotary=llama.FAMILY.rotary,
    gguf_interleaved=True,
)


@pytest.fixture(autouse=True)
def _registered():
    registry.register(TOY)
    yield
    registry.FAMILIES.pop(TOY.name, None)


@pytest.fixture(scope="module")
def oracle():
    """A tiny Ministral of transformers, random, in float32."""
    config = transformers.MinistralConfig(
        vocab_size=61, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, max_position_embeddings=64, sliding_window=64, tie_word_embeddings=False,
        layer_types=["full_attention"] * 2, rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        bos_token_id=1, eos_token_id=2, initializer_range=0.3,
    )  # fmt: skip
    torch.manual_seed(0)
    return transformers.MinistralForCausalLM(config).eval()


@pytest.fixture(scope="module")
def folder(oracle, tmp_path_factory):
    path = tmp_path_factory.mktemp("ministral")
    oracle.save_pretrained(path)
    return path


def tokens(model) -> list[list[int]]:
    llm = LLM(model, dtype="float32", num_blocks=64)
    return [request.outputs[0].token_ids for request in llm.generate(PROMPTS, GREEDY, use_tqdm=False)]


def expected(oracle) -> list[list[int]]:
    return [
        oracle.generate(torch.tensor([ids]), max_new_tokens=6, do_sample=False, eos_token_id=None, pad_token_id=0)[
            0, len(ids) :
        ].tolist()
        for ids in PROMPTS
    ]


def test_without_its_file_the_family_is_refused_by_name(folder):
    registry.FAMILIES.pop(TOY.name)
    with pytest.raises(ValueError, match="architecture MinistralForCausalLM is not supported"):
        LLM(folder)


def test_it_loads_and_writes_what_the_oracle_writes(oracle, folder):
    assert tokens(folder) == expected(oracle)


def test_both_exports_hold_the_same_network(oracle, folder, tmp_path):
    model = plain_model(open_source(str(folder)), "float32", torch.device("cpu"))
    ids = torch.tensor(PROMPTS[:1])
    torch.testing.assert_close(network(model)(ids).logits, oracle(ids).logits)
    write_gguf(model, tmp_path / "toy.gguf", "float32")
    assert tokens(tmp_path / "toy.gguf") == expected(oracle)


def test_sizes_follow_from_the_network(oracle, folder):
    config = open_source(str(folder)).config
    ours, theirs = registry.empty_network(config), oracle
    assert sum(w.numel() for w in ours.parameters()) == sum(w.numel() for w in theirs.parameters())


@pytest.mark.slow
def test_it_is_benchmarked(folder, tmp_path, monkeypatch):
    peaks = Peaks(2e10, 3e10, {"float32": 1e11})
    monkeypatch.setattr("octavo.bench.run.measure_peaks", lambda device, dtypes: peaks)
    monkeypatch.setattr("octavo.bench.ops.SECONDS", {"cpu": 0.0, "cuda": 0.0})
    common = ("--model", folder, "--dtype", "float32", "--backend", "cpu", "--threads", str(torch.get_num_threads()))
    grid = ("--batch", "2", "--context", "8", "--new-tokens", "4", "--quick", "--peers", "transformers")
    assert bench("decode", *common, *grid, "--output", tmp_path / "decode") == 0
    cells = records.read(tmp_path / "decode").cells
    assert {(cell.contender, cell.verdict) for cell in cells} == {("octavo:cpu", "same"), ("transformers", "same")}
    assert bench("ops", *common, "--batch", "2", "--context", "8", "--output", tmp_path / "ops") == 0


def test_two_families_of_one_name_are_refused():
    registry.register(TOY)  # the same one again is no mistake
    with pytest.raises(ValueError, match="a model family named 'gpt2' is registered already"):
        registry.register(Family(**{**vars(TOY), "name": "gpt2"}))

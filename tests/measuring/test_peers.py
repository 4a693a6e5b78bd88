"""The rivals get the same weights: exports keep every logit, and each peer that is installed says the same tokens."""

import os
import sys
from dataclasses import replace
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch

from octavo.bench.measuring.check import Verifier
from octavo.bench.measuring.workloads import GridPoint, prompts
from octavo.bench.peers import registry
from octavo.bench.peers.base import RunSettings, UnsupportedError
from octavo.bench.peers.export_gguf import write_gguf
from octavo.bench.peers.export_hf import network
from octavo.bench.peers.sources import open_source, plain_model
from octavo.bench.reporting.schema import PASSED
from octavo.gpt import LLM, SamplingParams
from octavo.gpt.loading.gguf import open_gguf_checkpoint
from octavo.gpt.models.rope import RopeScaling, deinterleave_rows, interleave_rows

from bench_tiny import checkpoint
from tiny import TINY, tiny_model

CPU = torch.device("cpu")
PROMPTS = [[(5 * row + 3 * i) % 97 for i in range(12)] for row in range(3)]
NEW_TOKENS = 9
needs_llamacpp = pytest.mark.skipif(registry.missing("llama.cpp", "cpu") is not None, reason="no llama-cpp-python")


@pytest.fixture(scope="module", params=TINY)
def folder(request, tmp_path_factory):
    return checkpoint(tmp_path_factory.mktemp("models") / request.param, request.param)


@pytest.fixture(scope="module")
def gguf(folder, tmp_path_factory):
    """The same network as a GGUF file, the rotary pairs of Llama in llama.cpp's order."""
    path = tmp_path_factory.mktemp("gguf") / "model.gguf"
    write_gguf(plain_model(open_source(str(folder)), "float32", CPU), path, "float32")
    return path


@pytest.fixture(scope="module")
def expected(folder):
    llm = LLM(folder, backend="reference", dtype="float32")
    params = SamplingParams(temperature=0, max_tokens=NEW_TOKENS, ignore_eos=True)
    return [request.outputs[0].token_ids for request in llm.generate(PROMPTS, params, use_tqdm=False)]


@pytest.fixture(autouse=True)
def _files_of_a_run(tmp_path, monkeypatch):
    monkeypatch.setenv("OCTAVO_CACHE", str(tmp_path))


def settings(place, dtype="float32"):
    return RunSettings(open_source(str(place)), dtype, CPU, 1, len(PROMPTS), 12 + NEW_TOKENS)


def logits(model):
    return model.loss(torch.tensor(PROMPTS, dtype=torch.int32)).logits


def test_transformers_computes_our_logits(folder):
    model = plain_model(open_source(str(folder)), "float32", CPU)
    theirs = network(model)(torch.tensor(PROMPTS)).logits
    torch.testing.assert_close(theirs, logits(model))


def test_a_gguf_file_holds_the_same_network(folder, gguf):
    model = plain_model(open_source(str(folder)), "float32", CPU)
    file, _ = open_gguf_checkpoint(gguf)
    assert getattr(file.config, "rope_interleaved", False) == (model.config.family == "llama")
    again = plain_model(open_source(str(gguf)), "float32", CPU)
    torch.testing.assert_close(logits(again), logits(model))
    torch.testing.assert_close(network(again)(torch.tensor(PROMPTS)).logits, logits(model))


def test_rotary_orders_are_inverse():
    rows = torch.arange(2 * 8 * 3).view(16, 3)
    assert deinterleave_rows(rows, 8)[:8, 0].tolist() == [0, 6, 12, 18, 3, 9, 15, 21]
    assert torch.equal(interleave_rows(deinterleave_rows(rows, 8), 8), rows)


def test_a_gguf_file_cannot_say_everything(tmp_path):
    model = tiny_model(TINY["llama"])
    model.config = replace(model.config, rope_scaling=RopeScaling("llama3"))
    with pytest.raises(ValueError, match="rotary scaling is not written"):
        write_gguf(model, tmp_path / "a.gguf", "float32")


@pytest.mark.parametrize("form", ["folder", "gguf"])
@pytest.mark.parametrize("name", ["transformers", "transformers:static", "ctranslate2", "llama.cpp"])
def test_a_peer_says_the_same_tokens(name, form, folder, gguf, expected):
    if reason := registry.missing(name, "cpu"):
        pytest.skip(reason)
    contender = registry.open_peer(name, settings(folder if form == "folder" else gguf))
    assert contender.generate(PROMPTS[1:2], NEW_TOKENS).tokens == expected[1:2]
    answer = contender.generate(PROMPTS, NEW_TOKENS)
    assert answer.tokens == expected
    assert (contender.name, contender.dtype, contender.same_weights) == (name, "float32", True)
    assert len(answer.step_s) == NEW_TOKENS - 1
    assert min(answer.ttft_s, *answer.step_s) > 0
    contender.close()


@pytest.mark.parametrize(
    "name", ["llama.cpp:q8_0", "llama.cpp:q4_1", "llama.cpp:q4_k_m", "llama.cpp:file", "ctranslate2:int8"]
)
def test_quantised_peers_say_that_they_are(name, gguf):
    if reason := registry.missing(name, "cpu"):
        pytest.skip(reason)
    contender = registry.open_peer(name, settings(gguf))
    assert not contender.same_weights
    assert contender.name == name
    assert 0 < contender.weight_bytes < (5 if name == "llama.cpp:file" else 2)  # the file is float32 here
    assert [len(tokens) for tokens in contender.generate(PROMPTS, 4).tokens] == [4] * 3
    contender.close()


def test_what_a_peer_was_not_made_for(folder):
    with pytest.raises(UnsupportedError, match="for CUDA devices"):
        registry.open_peer("transformers:continuous", settings(folder))
    if registry.missing("llama.cpp", "cpu") is None:
        with pytest.raises(UnsupportedError, match="is no GGUF file"):
            registry.open_peer("llama.cpp:file", settings(folder))


@needs_llamacpp
def test_prompts_longer_than_one_call_are_read_whole(folder, monkeypatch):
    """Sequences that begin in one call and end in another, and one whose call holds the end of the one before."""
    from octavo.bench.peers import llama_context

    whole = registry.open_peer("llama.cpp", settings(folder))
    expected = whole.generate(PROMPTS, NEW_TOKENS).tokens
    whole.close()
    monkeypatch.setattr(llama_context, "ROWS", 8)
    parts = registry.open_peer("llama.cpp", settings(folder))
    assert parts.generate(PROMPTS, NEW_TOKENS).tokens == expected
    assert parts.generate(PROMPTS[:1], NEW_TOKENS).tokens == expected[:1]
    parts.close()


@needs_llamacpp
def test_a_file_is_made_once_for_the_same_weights(folder, tmp_path):
    from octavo.bench.peers.llamacpp import prepare

    (path, size), (again, _) = (prepare(settings(folder), "q8_0") for _ in range(2))
    assert path == again
    assert path.is_relative_to(tmp_path)
    assert 1 < size < 5
    made = path.stat().st_mtime_ns
    assert prepare(settings(folder, "bfloat16"), "q8_0")[0].stat().st_mtime_ns == made
    assert prepare(settings(folder), "f16")[0] != path
    weights = folder / "model.safetensors"
    os.utime(weights, ns=(weights.stat().st_atime_ns, weights.stat().st_mtime_ns + 10**9))
    assert prepare(settings(folder), "q8_0")[0] != path
    assert not list(path.parent.glob(".making-*"))


def test_what_is_not_installed_is_one_plain_line(monkeypatch):
    monkeypatch.setattr(registry, "find_spec", lambda name: None)
    assert registry.installed("cpu") == []
    assert registry.missing("llama.cpp:q8_0", "cpu") == "llama.cpp is not installed: pip install llama-cpp-python"
    monkeypatch.setattr(registry, "find_spec", lambda name: object())
    assert registry.missing("vllm", "cpu") == "vllm runs on a CUDA device here"
    assert registry.missing("openvino", "cuda") == "openvino runs on a CPU here"
    assert registry.installed("cpu") == ["transformers", "llama.cpp", "ctranslate2", "openvino"]


class Told:
    """Stands for vLLM's and SGLang's engines: opens the checkpoint it is given, answers as our own engine does."""

    def __init__(self, folder, dtype):
        self.llm = LLM(folder, backend="reference", dtype=dtype)
        self.asked = []

    def answer(self, prompts, **params):
        self.asked.append(prompts)
        params = SamplingParams(temperature=params["temperature"], max_tokens=params["tokens"], ignore_eos=True)
        return [request.outputs[0].token_ids for request in self.llm.generate(prompts, params, use_tqdm=False)]


def fake_vllm():
    def generate(self, prompts, params, use_tqdm):
        assert (params["ignore_eos"], params["detokenize"], use_tqdm) == (True, False, False)
        ids = [prompt["prompt_token_ids"] for prompt in prompts]
        told = self.told.answer(ids, temperature=params["temperature"], tokens=params["max_tokens"])
        return [SimpleNamespace(outputs=[SimpleNamespace(token_ids=tuple(tokens))]) for tokens in told]

    def init(self, model, dtype, max_model_len, skip_tokenizer_init):
        assert (max_model_len, skip_tokenizer_init) == (12 + NEW_TOKENS, True)
        self.told = Told(model, dtype)

    module = ModuleType("vllm")
    module.LLM = type("LLM", (), {"__init__": init, "generate": generate})
    module.SamplingParams = dict
    return module


def fake_sglang():
    def generate(self, input_ids, sampling_params):
        assert sampling_params["ignore_eos"] is True
        tokens = sampling_params["max_new_tokens"]
        told = self.told.answer(input_ids, temperature=sampling_params["temperature"], tokens=tokens)
        return [{"output_ids": tokens} for tokens in told]

    def init(self, model_path, dtype, skip_tokenizer_init, log_level):
        self.told = Told(model_path, dtype)

    module = ModuleType("sglang")
    module.Engine = type("Engine", (), {"__init__": init, "generate": generate, "shutdown": lambda self: None})
    return module


@pytest.mark.parametrize(("name", "engine", "fake"), [("vllm", "llm", fake_vllm), ("sglang", "engine", fake_sglang)])
def test_offline_engines_are_asked_in_their_own_words(name, engine, fake, folder, expected, monkeypatch):
    """Neither runs on a CPU: an engine that takes exactly their arguments stands in, and reads the real checkpoint."""
    monkeypatch.setitem(sys.modules, name, fake())
    monkeypatch.setattr("octavo.bench.peers.servers.version", lambda name: "0")
    ticks = iter([0.0, 1.0, 10.0])  # the first token takes 1 s, all of them 9
    monkeypatch.setattr("octavo.bench.peers.base.time", SimpleNamespace(perf_counter=lambda: next(ticks)))
    contender = registry.open_peer(name, settings(folder))
    answer = contender.generate(PROMPTS, NEW_TOKENS)
    assert answer.tokens == expected
    assert (answer.ttft_s, answer.step_s, answer.steps_are_means) == (1.0, [1.0], True)
    first, second = getattr(contender, engine).told.asked
    assert first == [prompt[::-1] for prompt in PROMPTS]
    assert second == PROMPTS
    contender.close()


def fake_openvino(path, seconds):
    """Stands for LLMPipeline, and answers as our own engine does; steps take those seconds."""

    def init(self, name, device, INFERENCE_NUM_THREADS):
        assert (name, device, INFERENCE_NUM_THREADS) == (str(path), "CPU", 1)
        self.told = Told(name, "float32")

    def generate(self, inputs, config):
        plain = {"ignore_eos": True, "do_sample": False, "apply_chat_template": False}
        assert {name: config.pop(name) for name in plain} == plain
        ids, mask = inputs
        assert ids.shape == mask.shape
        tokens = self.told.answer(ids.tolist(), temperature=0, tokens=config.pop("max_new_tokens"))
        assert not config
        times = np.cumsum([100, *seconds[1:]]) * 1e3
        raw = SimpleNamespace(m_batch_sizes=[len(ids)] * len(times), m_times_to_first_token=[seconds[0] * 1e6],
                              m_new_token_times=times.tolist())  # fmt: skip
        return SimpleNamespace(tokens=tokens, perf_metrics=SimpleNamespace(raw_metrics=raw))

    genai, core = ModuleType("openvino_genai"), ModuleType("openvino")
    genai.__version__ = "2026.4.1.0-3408-abc"
    genai.LLMPipeline = type("LLMPipeline", (), {"__init__": init, "generate": generate})
    genai.GenerationConfig, genai.TokenizedInputs, core.Tensor = dict, lambda *pair: pair, np.asarray
    return {"openvino_genai": genai, "openvino": core}


@pytest.fixture
def _openvino_anew():
    """The module that imports it is no other test's."""
    sys.modules.pop("octavo.bench.peers.openvino", None)
    yield
    sys.modules.pop("octavo.bench.peers.openvino", None)


@pytest.mark.usefixtures("_openvino_anew")
def test_openvino_is_asked_in_its_own_words(tmp_path, monkeypatch):
    seconds = [0.5, *(0.01 * step for step in range(1, NEW_TOKENS))]
    model = plain_model(open_source(str(checkpoint(tmp_path / "llama", "llama"))), "float32", CPU)
    write_gguf(model, tmp_path / "model.gguf", "float32")
    for name, module in fake_openvino(tmp_path / "model.gguf", seconds).items():
        monkeypatch.setitem(sys.modules, name, module)
    contender = registry.open_peer("openvino:file", settings(tmp_path / "model.gguf"))
    answer = contender.generate(PROMPTS, NEW_TOKENS)
    with torch.inference_mode():
        best = logits(model).view(len(PROMPTS), -1, model.config.vocab_size)[:, -1].argmax(-1).tolist()
    assert [tokens[0] for tokens in answer.tokens] == best
    assert [answer.ttft_s, *answer.step_s] == pytest.approx(seconds)
    assert (contender.version, contender.dtype, contender.same_weights) == ("2026.4.1.0", "file", False)
    assert contender.weight_bytes == pytest.approx(4, rel=0.02)
    with pytest.raises(UnsupportedError, match="ask for --weights file"):
        registry.open_peer("openvino", settings(tmp_path / "model.gguf"))
    with pytest.raises(UnsupportedError, match="llama is no GGUF file"):
        registry.open_peer("openvino:file", settings(tmp_path / "llama"))


@pytest.mark.slow
@pytest.mark.model
def test_openvino_reads_the_file_as_we_do(smollm2_path):
    if reason := registry.missing("openvino", "cpu"):
        pytest.skip(reason)
    source = open_source(str(smollm2_path))
    verifier = Verifier(source, "float32", CPU, seed=0)
    contender = registry.open_peer("openvino:file", RunSettings(source, "float32", CPU, 1, 3, 64))
    point = GridPoint(3, 32, 32, 8)
    questions = prompts(source.config, point, 0, 0)
    answer = contender.generate(questions, point.new_tokens)
    assert [len(tokens) for tokens in answer.tokens] == [point.new_tokens] * 3
    assert verifier.check(questions, answer.tokens, same_weights=False).status in PASSED

"""Programs as they are written for vLLM and nano-vllm, on a tiny model: only the import is another."""

import inspect
import json

import numpy as np
import pytest
import torch
from tiny_folder import GREEDY, LIMITS, load_tiny, save_tiny

from octavo.gpt import LLM, AsyncLLM, SamplingParams
from octavo.gpt.cli import main
from octavo.gpt.options.generation_config import sampling_defaults

# What a program for vLLM 0.11 to 0.30 may name.
SAMPLING_WORDS = """n presence_penalty frequency_penalty repetition_penalty temperature top_p top_k min_p seed stop
    stop_token_ids ignore_eos max_tokens min_tokens logprobs prompt_logprobs logprob_token_ids flat_logprobs detokenize
    skip_special_tokens spaces_between_special_tokens include_stop_str_in_output output_kind stream_interval skip_clone
    structured_outputs logit_bias allowed_token_ids extra_args bad_words skip_reading_prefix_cache
    thinking_token_budget repetition_detection truncate_prompt_tokens best_of guided_decoding logits_processors"""
ENGINE_WORDS = """model runner convert tokenizer_mode trust_remote_code allowed_local_media_path tensor_parallel_size
    dtype quantization tokenizer_revision seed gpu_memory_utilization swap_space cpu_offload_gb enforce_eager
    disable_custom_all_reduce hf_overrides mm_processor_kwargs pooler_config compilation_config logits_processors
    max_model_len max_num_seqs max_num_batched_tokens block_size enable_prefix_caching enable_chunked_prefill
    disable_log_stats generation_config override_generation_config load_format kv_cache_dtype max_logprobs
    pipeline_parallel_size speculative_config limit_mm_per_prompt enable_lora task"""
SAID = {"temperature": 0.6, "top_p": 0.9, "top_k": 20, "max_new_tokens": 7, "do_sample": True, "min_p": None}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = save_tiny(tmp_path_factory.mktemp("tiny"))
    (folder / "generation_config.json").write_text(json.dumps({**SAID, "eos_token_id": [1, 5]}))
    return folder


@pytest.fixture(scope="module")
def llm(folder):
    return LLM(
        model=str(folder), backend="reference", tensor_parallel_size=1, gpu_memory_utilization=0.9, enforce_eager=True,
        trust_remote_code=False, tokenizer_mode="auto", swap_space=4, disable_log_stats=True, quantization=None,
        **{**LIMITS, "dtype": torch.float32}, device=torch.device("cpu"),
    )  # fmt: skip


def test_the_signatures_show_vllm_s_words():
    assert set(SAMPLING_WORDS.split()) <= set(inspect.signature(SamplingParams).parameters)
    assert set(ENGINE_WORDS.split()) <= set(inspect.signature(LLM).parameters)
    assert inspect.signature(AsyncLLM) == inspect.signature(LLM)
    assert {"prompts", "sampling_params", "use_tqdm", "lora_request"} <= set(inspect.signature(LLM.generate).parameters)


def test_a_batch_of_texts(llm):
    prompts = ["Hello, my name is", "The capital of France is"]
    outputs = llm.generate(prompts, sampling_params=SamplingParams(temperature=0.8, top_p=0.95, seed=1))
    assert [output.prompt for output in outputs] == prompts
    for output in outputs:
        assert repr(output.outputs[0]).startswith(f"CompletionOutput(index=0, text={output.outputs[0].text!r}")
        assert f"prompt={output.prompt!r}" in repr(output)


def test_prompts_in_every_form(llm):
    ids = llm.encode("the quick brown fox")
    one = torch.tensor(ids)
    forms = [
        [ids], [{"prompt_token_ids": ids}], {"prompt_token_ids": np.array(ids), "prompt": "text", "cache_salt": None},
        np.array(ids), one, one.unsqueeze(0), [np.array(ids)], [*one], [np.int64(i) for i in ids], tuple(ids),
    ]  # fmt: skip
    assert {tuple(llm.generate(form, GREEDY)[0].outputs[0].token_ids) for form in forms} == {
        tuple(llm.generate({"prompt": "the quick brown fox"}, GREEDY)[0].outputs[0].token_ids)
    }
    with pytest.raises(ValueError, match="prompt_token_ids, not 'multi_modal_data'"):
        llm.generate({"prompt": "a", "multi_modal_data": 3})


def test_a_conversation(llm):
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}]
    request = llm.chat(messages, sampling_params=GREEDY, use_tqdm=False)[0]
    assert request.prompt == llm.get_tokenizer().decode(request.prompt_token_ids)
    assert "Be brief." in request.prompt


def test_nano_vllm_s_example(llm):
    outputs = llm.generate(["Hello, Nano."], SamplingParams(temperature=0.6, max_tokens=5))
    assert outputs[0]["text"] == outputs[0].outputs[0].text
    assert outputs[0]["token_ids"] == outputs[0].outputs[0].token_ids


def test_params_are_values():
    params = SamplingParams(
        stop=["x"], stop_token_ids={3, 4}, logit_bias={np.int64(5): -1000.0}, temperature=np.float32(0.5),
        max_tokens=torch.tensor(5), bad_words=None, allowed_token_ids=np.array([1, 2]), top_k=np.int32(3),
    )  # fmt: skip
    assert hash(params) == hash(params.clone())
    assert params == params.clone()
    assert params.replace(max_tokens=9).max_tokens == 9
    assert (params.temperature, params.max_tokens, params.allowed_token_ids) == (0.5, 5, (1, 2))
    assert repr(SamplingParams(seed=3, stop="a")) == "SamplingParams(seed=3, stop=('a',))"
    assert SamplingParams(stop=None, stop_token_ids=None) == SamplingParams()
    assert SamplingParams.from_optional(temperature=None, n=2) == SamplingParams(n=2)


@pytest.mark.parametrize("name", ["guided_decoding", "logits_processors", "extra_args", "best_of"])
def test_what_would_silently_not_happen_is_refused(name):
    with pytest.raises(ValueError, match=f"{name} is not supported"):
        SamplingParams(**{name: {"json": 1}})


def test_arguments_of_the_engine_are_refused_by_name(folder):
    for name, value in (("tensor_parallel_size", 2), ("quantization", "fp8"), ("hf_overrides", {"a": 1})):
        with pytest.raises(ValueError, match=f"LLM does not support {name}="):
            load_tiny(folder, **{name: value})
    with pytest.raises(TypeError, match="LLM has no argument 'max_model_length'"):
        load_tiny(folder, max_model_length=3)
    with pytest.raises(ValueError, match="device 'cuda:7' is not the one in use"):
        load_tiny(folder, device="cuda:7")


def test_the_old_name_works_with_a_word(llm):
    with pytest.warns(FutureWarning, match="params= is now sampling_params=") as warned:
        llm.generate([[1, 2]], params=GREEDY)
    assert [warning.filename for warning in warned] == [__file__]


def test_generation_config_is_what_a_request_without_params_gets(llm, folder):
    expected = SamplingParams(temperature=0.6, top_p=0.9, top_k=20, max_tokens=7)
    assert llm.get_default_sampling_params() == expected
    assert len(llm.generate([[1, 2]])[0].outputs[0].token_ids) <= 7
    assert sampling_defaults("octavo", folder) == {}
    assert sampling_defaults(folder, None)["top_k"] == 20
    assert sampling_defaults("auto", folder / "model.gguf") == {}
    assert sampling_defaults("auto", folder, {"temperature": 0})["temperature"] == 0
    assert 5 in llm.model.config.eos_ids


def test_a_bad_generation_config_is_named(tmp_path):
    (tmp_path / "generation_config.json").write_text('{"temperature": -1}')
    with pytest.raises(ValueError, match=r"generation_config.json: temperature must be .* not -1"):
        sampling_defaults("auto", tmp_path)
    with pytest.raises(ValueError, match="generation_config must be auto, octavo or a folder"):
        sampling_defaults("nowhere", None)


def test_progress_reaches_a_log(llm, capsys):
    llm.generate([[1], [2], [3]], GREEDY)
    assert "Processed prompts: 100%" in capsys.readouterr().err
    llm.generate([[1], [2], [3]], GREEDY, use_tqdm=False)
    assert capsys.readouterr().err == ""


def test_a_draw_shows_what_each_step_leaves(llm):
    params = SamplingParams(temperature=0.5, top_k=3, top_p=0.9)
    raw = llm.next_tokens("the quick", 5)
    found = llm.draw("the quick", params, 5)
    assert [each.token_id for each in found.candidates] == [each.token_id for each in raw]
    assert [each.raw for each in found.candidates] == pytest.approx([each.probability for each in raw], rel=1e-4)
    squares = [each.raw**2 for each in llm.draw("the quick", params, 1000).candidates]
    assert [each.tempered for each in found.candidates] == pytest.approx([s / sum(squares) for s in squares[:5]])
    kept = [each.kept for each in found.candidates if each.kept]
    assert len(kept) == found.num_kept <= 3
    assert sum(kept) == pytest.approx(1)
    assert [each.probability for each in llm.next_tokens("the quick", 5, params)] == kept
    assert llm.draw("the quick", params.replace(temperature=0), 5).candidates[0].kept == 1


def test_a_model_says_what_it_is(llm):
    assert "backend reference, device cpu, torch.float32, weights float32" in repr(llm)


def test_the_command_line_follows_the_file_and_says_so(folder, capsys):
    model = ["--model", str(folder), "--backend", "reference", "--dtype", "float32", "--json"]
    assert main(["generate", "the quick", "--top-p", "0.5", *model]) == 0
    captured = capsys.readouterr()
    assert "octavo: as the model's generation_config.json says: temperature 0.6, top_k 20, max_tokens 7" in captured.err
    assert len(json.loads(captured.out)["outputs"][0]["token_ids"]) <= 7
    assert main(["generate", "the quick", "--generation-config", "octavo", "--max-tokens", "3", *model]) == 0
    assert capsys.readouterr().err == ""


def test_the_command_line_shows_draws_beams_and_log_probabilities(folder, capsys):
    model = ["--model", str(folder), "--backend", "reference", "--dtype", "float32"]
    assert main(["step", "the quick", "--temperature", "0.7", "--top-k", "3", "--seed", "1", *model]) == 0
    shown = capsys.readouterr().out
    assert "<- drawn" in shown
    assert "the filters kept 3 tokens" in shown
    assert main(["step", "the quick", "--temperature", "0", "--json", *model]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["won"]["token_id"] == document["candidates"][0]["token_id"]
    assert main(["next", "the quick", "--top-k", "2", "--json", *model]) == 0
    assert len(json.loads(capsys.readouterr().out)) == 2
    assert main(["beam", "the quick", "--beams", "2", "--max-tokens", "3", "--json", *model]) == 0
    assert [isinstance(each["text"], str) for each in json.loads(capsys.readouterr().out)] == [True, True]
    assert main(["generate", "the quick", "--logprobs", "2", "--temperature", "0", "--max-tokens", "2", *model]) == 0
    assert "probability" in capsys.readouterr().err

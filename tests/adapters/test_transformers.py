"""transformers' models on Octavo's attention say what they say on their own."""

from typing import Any

import pytest
import torch
import transformers

from octavo.gpt.adapters import transformers as adapter

SMALL: dict[str, Any] = {
    "vocab_size": 97, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 16, "max_position_embeddings": 128, "pad_token_id": 0, "eos_token_id": None,
}  # fmt: skip
MODELS: dict[str, dict[str, Any]] = {
    "llama": {},
    "gemma2": {"sliding_window": 8, "query_pre_attn_scalar": 16, "attn_logit_softcapping": 2.0},
    "gpt_oss": {"sliding_window": 8, "num_local_experts": 2, "num_experts_per_tok": 1},
}


def made(kind: str, backend: str) -> tuple[Any, Any]:
    """The same random model twice: with transformers' attention, and with Octavo's."""
    adapter.register(f"octavo-{backend}", backend)
    config = transformers.AutoConfig.for_model(kind, **SMALL, **MODELS[kind])
    torch.manual_seed(0)
    own = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    for parameter in own.parameters():
        parameter.data.mul_(3)
    twin = transformers.AutoModelForCausalLM.from_config(config, attn_implementation=f"octavo-{backend}").eval()
    twin.load_state_dict(own.state_dict())
    return own, twin


def padded(side: str, *lengths: int) -> dict[str, torch.Tensor]:
    """Random prompts of these lengths, with the padding on that side."""
    generator, width = torch.Generator().manual_seed(1), max(lengths)
    ids = torch.randint(3, 97, (len(lengths), width), generator=generator)
    places = torch.arange(width)
    real = torch.stack([places < n if side == "right" else places >= width - n for n in lengths])
    return {"input_ids": ids.where(real, 0), "attention_mask": real.long()}


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("side", ["left", "right"])
@torch.inference_mode()
def test_logits_are_those_of_transformers(kind: str, backend: str, side: str) -> None:
    own, twin = made(kind, backend)
    batch = padded(side, 20, 7, 13)
    real = batch["attention_mask"].bool()
    torch.testing.assert_close(twin(**batch).logits[real], own(**batch).logits[real], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("cache", ["dynamic", "static"])
@pytest.mark.parametrize(("kind", "backend"), [("llama", "reference"), *((kind, "cpu") for kind in MODELS)])
def test_greedy_tokens_are_those_of_transformers(kind: str, backend: str, cache: str) -> None:
    own, twin = made(kind, backend)
    wish = {"max_new_tokens": 12, "do_sample": False, "cache_implementation": cache, "disable_compile": True}
    batch = padded("left", 20, 7, 13)
    assert torch.equal(twin.generate(**batch, **wish), own.generate(**batch, **wish))


@torch.inference_mode()
def test_a_chunk_of_a_prompt_sees_what_is_cached() -> None:
    own, twin = made("llama", "cpu")
    ids = padded("left", 40)["input_ids"]
    cached = twin(ids[:, :17], use_cache=True).past_key_values
    logits = twin(ids[:, 17:], past_key_values=cached).logits
    torch.testing.assert_close(logits, own(ids).logits[:, 17:], atol=1e-4, rtol=1e-4)


def test_gradients_are_the_reference_s_alone() -> None:
    own, twin = made("llama", "reference")
    ids = padded("left", 12)["input_ids"]
    for model in (own, twin):
        model(ids, labels=ids).loss.backward()
    for one, other in zip(own.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(other.grad, one.grad, atol=1e-4, rtol=1e-3)
    with pytest.raises(ValueError, match=r"octavo's attention has no gradients: call the model under torch.no_grad"):
        made("llama", "cpu")[1](ids)


@torch.inference_mode()
def test_what_it_cannot_do_is_refused() -> None:
    _, twin = made("llama", "cpu")
    ids, positions = torch.arange(3, 9)[None], torch.tensor([[0, 1, 2, 0, 1, 2]])
    with pytest.raises(ValueError, match="takes no sequences packed into one: pad them"):
        twin(ids, position_ids=positions)
    layer = twin.model.layers[0].self_attn
    x = torch.zeros(1, 4, 3, 16)
    for wish, message in (({"is_causal": False}, "is causal, this layer is not"), ({"dropout": 0.1}, "asks for 0.1")):
        with pytest.raises(ValueError, match=message):
            adapter.attention(adapter.backends.load("cpu"), layer, x, x, x, **wish)

"""Validation of requests: refuse what could never be served, in one line that says why."""

from collections.abc import Sequence

from octavo.gpt.options.checks import plain
from octavo.gpt.quoting import quoted
from octavo.gpt.sampling_params import MAX_LOGPROBS, SamplingParams, as_ids
from octavo.gpt.scheduler.config import EngineConfig


def checked_ids(prompt_token_ids: Sequence[int], vocab_size: int) -> list[int]:
    """Return the ids as a list; ValueError naming one that is no integer or not in the vocabulary."""
    ids = [token_id if type(token_id) is int else plain(token_id) for token_id in prompt_token_ids]
    for token_id in ids:
        if not isinstance(token_id, int) or isinstance(token_id, bool):
            raise ValueError(f"prompt token ids must be integers, not {quoted(token_id)}")
        if not 0 <= token_id < vocab_size:
            raise ValueError(f"prompt token id {quoted(token_id)} is outside the vocabulary of {vocab_size}")
    return ids


def check_request(
    prompt_ids: list[int], params: SamplingParams, config: EngineConfig, vocab_size: int, has_tokenizer: bool
) -> None:
    """Raise ValueError naming what makes the request one that the engine could never finish."""
    max_len = config.max_model_len
    if not prompt_ids:
        raise ValueError("the prompt is empty, and the model has no beginning-of-text token to start from")
    if len(prompt_ids) > max_len and params.overflow == "stop":
        raise ValueError(
            f"the prompt has {len(prompt_ids)} tokens, max_model_len is {max_len} (overflow='shift' cuts it)"
        )
    for name in ("logit_bias", "stop_token_ids", "allowed_token_ids", "logprob_token_ids"):
        for token_id in as_ids(getattr(params, name)):
            if token_id >= vocab_size:
                raise ValueError(f"{name} has token id {quoted(token_id)}, outside the vocabulary of {vocab_size}")
    if params.stop_strings and not has_tokenizer:
        raise ValueError("stop strings need a tokenizer, and this model has none: use stop_token_ids")
    if params.bad_words and not has_tokenizer:
        raise ValueError("bad_words need a tokenizer, and this model has none: use logit_bias or allowed_token_ids")
    whole = params.for_engine(vocab_size, config.logprobs_mode)
    for name, number, n in (("logprobs", whole.logprobs, params.n), ("prompt_logprobs", whole.prompt_logprobs, 1)):
        if n * (number or 0) > MAX_LOGPROBS:
            raise ValueError(f"n ({n}) times {name} ({number}) is more than {MAX_LOGPROBS} log-probabilities a step")
    most = max_len if params.max_tokens is None else min(max_len, len(prompt_ids) + params.max_tokens - 1)
    most = min(most, config.max_blocks_per_seq * config.block_size)
    held = config.num_blocks * config.block_size
    if most > held:
        raise ValueError(f"the request may need {most} cached tokens, the cache holds {held}: raise num_blocks")

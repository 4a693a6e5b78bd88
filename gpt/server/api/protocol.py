"""Requests of the API as pydantic models: OpenAI's fields, and vLLM's beside them. Unknown fields are refused."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Ids = list[int]


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class StreamOptions(Strict):
    include_usage: bool = False
    include_obfuscation: bool = False  # changes nothing: nothing is padded
    continuous_usage_stats: bool = False


class Generation(Strict):
    """What completions and chats share. None: the model's generation_config.json, else SamplingParams' default."""

    model: str | None = None
    stream: bool | None = False
    stream_options: StreamOptions | None = None
    n: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    seed: int | None = None
    max_tokens: int | None = None
    min_tokens: int | None = None
    stop: str | list[str] | None = None
    stop_token_ids: Ids | None = None
    ignore_eos: bool | None = None
    prompt_logprobs: int | None = None
    skip_special_tokens: bool | None = None
    include_stop_str_in_output: bool | None = None
    truncate_prompt_tokens: int | None = None
    allowed_token_ids: Ids | None = None
    bad_words: list[str] | None = None
    cache_salt: str | None = None
    logprobs_mode: str | None = None
    logprob_token_ids: Ids | None = None
    return_token_ids: bool | None = None
    return_tokens_as_token_ids: bool | None = None
    response_format: dict[str, Any] | None = None
    structured_outputs: dict[str, Any] | None = None
    guided_json: dict[str, Any] | str | None = None
    guided_regex: str | None = None
    guided_choice: list[str] | None = None
    guided_grammar: str | None = None
    guided_json_object: bool | None = None
    user: str | None = None
    store: bool | None = None
    metadata: dict[str, str] | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    priority: int | None = None
    request_id: str | None = None


class CompletionRequest(Generation):
    prompt: str | list[str] | Ids | list[Ids]
    echo: bool | None = False
    logprobs: int | None = None
    suffix: Literal[""] | None = None
    best_of: int | None = None
    add_special_tokens: bool = True


class ChatRequest(Generation):
    messages: list[dict[str, Any]]
    logprobs: bool | None = False
    top_logprobs: int | None = None
    max_completion_tokens: int | None = None
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    chat_template_kwargs: dict[str, Any] | None = None
    documents: list[dict[str, Any]] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: Literal["none", "auto"] | None = None
    parallel_tool_calls: Literal[True] | None = None
    modalities: list[Literal["text"]] | None = None


class TokenizeRequest(Strict):
    """A prompt, or messages to be rendered by the model's template."""

    model: str | None = None
    prompt: str | None = None
    messages: list[dict[str, Any]] | None = None
    add_special_tokens: bool = True
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    chat_template_kwargs: dict[str, Any] | None = None
    tools: list[dict[str, Any]] | None = None
    return_token_strs: bool | None = None


class DetokenizeRequest(Strict):
    model: str | None = None
    tokens: Ids
    return_token_strs: bool | None = None  # each token's own text beside that of all


class ScoreRequest(Strict):
    """Texts, or token ids, whose likelihood is asked for."""

    model: str | None = None
    prompt: str | list[str] | Ids | list[Ids] = Field(description="one text, or several")


SAMPLING = (
    "n", "temperature", "top_p", "top_k", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty",
    "seed", "max_tokens", "min_tokens", "stop", "stop_token_ids", "ignore_eos", "prompt_logprobs",
    "skip_special_tokens", "include_stop_str_in_output", "truncate_prompt_tokens", "allowed_token_ids", "bad_words",
    "cache_salt", "logprobs_mode", "logprob_token_ids",
)  # fmt: skip

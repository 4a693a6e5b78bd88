"""Arguments of vLLM's that Octavo has no use for: each is taken with the values that ask for nothing.

A type says which values those are, to type checkers and to `refuse_others` alike: None, those of a Literal, or all of
a plain type. So a script for vLLM runs as it is, unless it asks for something that would silently not happen.
"""

import inspect
import types
import warnings
from collections.abc import Callable, Mapping
from typing import Any, Literal, TypedDict, TypeVar, Union, get_args, get_origin, get_type_hints

from octavo.gpt.options.checks import plain
from octavo.gpt.quoting import quoted

F = TypeVar("F", bound=Callable[..., Any])


class EngineOptions(TypedDict, total=False):
    """Of `LLM`."""

    # One process on one device, whose memory `num_blocks` and `max_model_len` share out.
    tensor_parallel_size: Literal[1]
    pipeline_parallel_size: Literal[1]
    data_parallel_size: Literal[1]
    enable_expert_parallel: Literal[False]
    distributed_executor_backend: Literal["uni", "mp"] | None
    disable_custom_all_reduce: bool
    gpu_memory_utilization: float
    kv_cache_memory_bytes: None
    num_gpu_blocks_override: None
    swap_space: float
    cpu_offload_gb: Literal[0]
    enable_sleep_mode: Literal[False]
    # What is loaded, and how. No code of a model's is ever run.
    trust_remote_code: bool
    code_revision: None
    tokenizer_mode: Literal["auto", "hf"]
    runner: Literal["auto", "generate"]
    convert: Literal["auto", "none"]
    task: Literal["auto", "generate"] | None
    model_impl: Literal["auto"]
    load_format: Literal["auto", "safetensors", "gguf"]
    config_format: Literal["auto", "hf"]
    quantization: Literal["gguf"] | None
    kv_cache_dtype: Literal["auto"]
    hf_overrides: None
    hf_config_path: None
    served_model_name: str | None
    use_tqdm_on_load: bool
    enable_lora: bool
    max_loras: int
    max_lora_rank: int
    max_cpu_loras: int | None
    pooler_config: None
    mm_processor_kwargs: None
    limit_mm_per_prompt: None
    allowed_local_media_path: Literal[""]
    allowed_media_domains: None
    # How steps are made up, which changes no token here.
    max_num_partial_prefills: int
    enable_chunked_prefill: bool | None
    scheduling_policy: Literal["fcfs"]
    async_scheduling: bool | None
    num_scheduler_steps: int
    max_seq_len_to_capture: int
    max_logprobs: int
    compilation_config: int | None
    speculative_config: dict | None  # read by gpt/speculative/choice.py
    attention_config: None
    structured_outputs_config: None
    guided_decoding_backend: Literal["auto"]
    logits_processors: None
    logits_processor_pattern: None
    profiler_config: None
    disable_log_stats: bool
    disable_log_requests: bool
    enable_return_routed_experts: Literal[False]


class RequestOptions(TypedDict, total=False):
    """Of `LLM.generate` and others that take prompts."""

    prompt_adapter_request: None
    guided_options_request: None
    priority: None
    tokenization_kwargs: None
    mm_processor_kwargs: None


def refuse_others(function: str, given: Mapping[str, Any], options: type) -> None:
    """TypeError for an argument that the options do not name, ValueError for a value that asks for something."""
    hints = get_type_hints(options) if given else {}
    for name, value in given.items():
        if name not in hints:
            raise TypeError(f"{function} has no argument {quoted(name)}")
        if not _accepts(hints[name], value):
            raise ValueError(
                f"{function} does not support {name}={quoted(value)}: leave it out, or {_shown(hints[name])}"
            )


def renamed(sampling_params: Any, params: Any) -> Any:
    """The argument under vLLM's name, or under its old one with a word of warning."""
    if params is not None:
        warnings.warn("params= is now sampling_params=, as in vLLM, and will be refused", FutureWarning, stacklevel=4)
    return sampling_params if sampling_params is not None else params


def shows(options: type) -> Callable[[F], F]:
    """Have `inspect.signature` show the options of a function that takes them as `**kwargs`."""

    def decorate(function: F) -> F:
        *own, _ = inspect.signature(function).parameters.values()
        names = [name for name in get_type_hints(options) if name not in {each.name for each in own}]
        neutral = [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None) for name in names]
        signature = inspect.signature(function).replace(parameters=[*own, *neutral])
        function.__signature__ = signature  # type: ignore[attr-defined]
        return function

    return decorate


def _accepts(hint: Any, value: Any) -> bool:
    value = plain(value)
    if get_origin(hint) in (Union, types.UnionType):
        return any(_accepts(each, value) for each in get_args(hint))
    if get_origin(hint) is Literal:
        return any(value == each for each in get_args(hint) if isinstance(value, str | int | float))
    kinds = {float: (int, float), bool: (bool, int)}.get(hint, hint)
    return isinstance(value, kinds)


def _shown(hint: Any) -> str:
    if get_origin(hint) in (Union, types.UnionType):
        return " or ".join(map(_shown, get_args(hint)))
    if get_origin(hint) is Literal:
        return " or ".join(map(repr, get_args(hint)))
    return "None" if hint is type(None) else f"a {hint.__name__}"

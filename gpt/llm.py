"""LLM: the front door. Text or token ids in, completions out; vLLM's words."""

import math
import weakref
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Unpack

import torch
from rich.console import Console
from rich.progress import track

from octavo.gpt.beam_search import Beam, BeamSearch, Continuations, check_options
from octavo.gpt.beam_search import run as run_searches
from octavo.gpt.engine import Engine, Listener
from octavo.gpt.engine_thread import EngineClosedError, EngineThread
from octavo.gpt.loading.loader import LoadedModel, load_model, resolve_device
from octavo.gpt.models.base import Model
from octavo.gpt.outputs import RequestOutput, TokenProbability, raise_if_failed
from octavo.gpt.prompts import Prompt, as_list, content, encode, text_of
from octavo.gpt.runner.decode_graph import cuda_capture
from octavo.gpt.runner.kv_cache import PagedCache, plan_memory
from octavo.gpt.runner.model_runner import Runner
from octavo.gpt.sampling_params import MAX_LOGPROBS, SamplingParams
from octavo.gpt.scheduler.config import EngineConfig
from octavo.gpt.scoring import Score, score
from octavo.gpt.tokenizer.chat_template import ChatOptions
from octavo.kernels import backends
from octavo.kernels.ops import Ops

Message = Mapping[str, Any]

CUDA_GRAPHS = ("startup", "lazy", "off")


def make_engine(
    loaded: LoadedModel,
    config: EngineConfig,
    device: torch.device,
    seed: int,
    enable_prefix_caching: bool,
    cuda_graphs: str,
) -> Engine:
    """Return an engine of the model with a cache of its own, on CUDA with its graphs captured if "startup" asks."""
    model, on_cuda = loaded.model, device.type == "cuda"
    cache = PagedCache(model.config, config.num_blocks, config.block_size, loaded.dtype, device)
    graphs = on_cuda and cuda_graphs != "off" and backends.can_be_captured(model.ops)
    runner = Runner(model, cache, config, device, cuda_capture() if graphs else None)
    if graphs and cuda_graphs == "startup":
        runner.warm_up(config.max_num_batched_tokens)
    return Engine(runner, model.config, config, loaded.tokenizer, seed, enable_prefix_caching, async_scheduling=on_cuda)


class LLM:
    """A model, its cache and an engine.

    model: a name (`octavo models` lists them), a Hugging Face folder or a GGUF file. backend: a name or an Ops value;
    "auto" is triton on CUDA, else the fastest that runs here. dtype: of activations and cached values. weights: the
    format of the products' weights, "int8" or "auto" for dense ones. parse_special: whether text in a prompt that
    spells a control token becomes that token, or stays text. tokenizer: "auto" for the model's own, another's name, or
    None (or `skip_tokenizer_init`) for a model that takes and gives token ids alone.

    At most `max_num_seqs` completions run together and `max_num_waiting` wait; when the cache runs out, `preemption`
    moves the youngest's blocks to host memory and back ("swap", exact), or drops them and computes its text again as a
    prompt ("recompute", equal to the rounding). On CUDA, decode steps of the triton backend are graphs, captured as the
    model loads ("startup"), when a size is first needed ("lazy") or not at all ("off"); elsewhere `cuda_graphs` changes
    nothing. Bad arguments raise ValueError, missing files FileNotFoundError.

    Any number of threads may call at once: their requests share the steps of one engine, which a thread of its own
    runs (see `EngineThread`).
    """

    def __init__(
        self,
        model: str | Path = "smollm2",
        backend: str | Ops = "auto",
        dtype: str = "auto",
        device: str = "auto",
        max_model_len: int | None = None,
        block_size: int = 16,
        num_blocks: int | None = None,
        max_num_seqs: int = 64,
        max_num_batched_tokens: int = 2048,
        max_num_waiting: int = 4096,
        preemption: str = "swap",
        seed: int = 0,
        enable_prefix_caching: bool = True,
        cuda_graphs: str = "startup",
        weights: str = "auto",
        parse_special: bool = False,
        tokenizer: str | Path | None = "auto",
        skip_tokenizer_init: bool = False,
    ) -> None:
        if cuda_graphs not in CUDA_GRAPHS:
            raise ValueError(f"cuda_graphs must be one of {', '.join(CUDA_GRAPHS)}, not {cuda_graphs!r}")
        self.device = resolve_device(device)
        self.parse_special = parse_special
        tokenizer = None if skip_tokenizer_init else tokenizer
        if isinstance(backend, str):
            backend = backends.load(backends.best_for(self.device.type) if backend == "auto" else backend)
        self.thread = EngineThread()
        weakref.finalize(self, self.thread.stop).atexit = False  # the thread's module ends what is left then
        try:
            loaded = self.thread.call(load_model, model, backend, dtype, self.device.type, weights, tokenizer)
            self.name, self.tokenizer, self.is_dummy = loaded.name, loaded.tokenizer, loaded.is_dummy
            self.model: Model = loaded.model
            self.dtype = loaded.dtype
            self.config = plan_memory(
                self.model.config, self.dtype, self.device, max_model_len, num_blocks,
                block_size=block_size, max_num_seqs=max_num_seqs, max_num_batched_tokens=max_num_batched_tokens,
                max_num_waiting=max_num_waiting, preemption=preemption,
            )  # fmt: skip
            self.engine = self.thread.own(
                make_engine, loaded, self.config, self.device, seed, enable_prefix_caching, cuda_graphs
            )
        except BaseException:
            self.thread.stop()
            raise

    def close(self) -> None:
        """End every request, and the thread that computes. A closed LLM refuses all calls."""
        self.thread.close()

    def __enter__(self) -> "LLM":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def backend(self) -> str:
        return self.model.ops.name

    @property
    def has_unfinished(self) -> bool:
        self.thread.settle()
        return self.engine.has_unfinished

    def add(self, prompt: Prompt, params: SamplingParams | None = None) -> int:
        """Queue a request for `step`, and return its number. QueueFullError when `max_num_waiting` wait already."""
        params = params or SamplingParams()
        ids = self.encode_request(prompt, params)
        return self.thread.call(self.engine.add, ids, params, text_of(prompt)).request_id

    def step(self) -> list[RequestOutput]:
        """Run one forward step for all requests; return the live outputs of those that got something new.

        A step that raises ends every request with an error, so no request goes on from a step half done.
        """
        return self.thread.call(self.engine.step)

    def abort(self, request_id: int) -> None:
        """End a request, in whatever state it is."""
        self.thread.call(self.engine.abort, request_id)

    def stats(self) -> dict[str, Any]:
        """Return counts of requests, tokens and blocks, the prefix hit rate, and percentiles of times in seconds.

        A request counts once for each of its `n` completions, tokens are those computed (again after a preemption by
        recompute), and times are of the last thousand completions.
        """
        return self.thread.call(self.engine.stats)

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        use_tqdm: bool = True,
    ) -> list[RequestOutput]:
        """Complete each prompt; order is kept. params: one for all, or one each."""
        prompts = as_list(prompts)
        each = [params or SamplingParams()] * len(prompts) if not isinstance(params, Sequence) else list(params)
        if len(each) != len(prompts):
            raise ValueError(f"params has {len(each)} entries for {len(prompts)} prompts")
        checked = [
            (self.engine.check(self.encode_request(prompt, own), own), own, text_of(prompt))
            for prompt, own in zip(prompts, each, strict=True)
        ]
        listener = _Ends()
        try:
            requests = self.thread.call(self.engine.add_all, checked, listener)
            for request in _progress(requests, use_tqdm):
                while not request.finished:
                    listener.queue.get()
        except BaseException:
            self._forget(listener)
            raise
        for request in requests:
            if request.error is not None:
                raise request.error
        return requests

    def stream(self, prompt: Prompt, params: SamplingParams | None = None) -> Iterator[str]:
        """Yield the completion's text, piece by piece; leaving the loop ends the request.

        The completion goes on while the caller does other things between two pieces.
        """
        params = params or SamplingParams()
        if self.tokenizer is None:
            raise ValueError("stream needs a tokenizer, and this model has none: use generate with token ids")
        if params.n != 1:
            raise ValueError(f"stream gives one completion, n is {params.n}")
        return self._stream(self.engine.check(self.encode_request(prompt, params), params), params, text_of(prompt))

    def _stream(self, ids: list[int], params: SamplingParams, text: str | None) -> Iterator[str]:
        listener = _Pieces()
        try:
            request = self.thread.call(self.engine.add, ids, params, text, listener)
            while (piece := listener.queue.get()) is not None:
                yield piece
            raise_if_failed(request)
        finally:
            self._forget(listener)

    def _forget(self, listener: Listener) -> None:
        """End the listener's requests. Once asked, the engine does it, even if the wait is interrupted.

        Garbage collection may close a stream on any thread, the engine's too, which does not wait for itself.
        """
        with suppress(EngineClosedError):
            forgotten = self.thread.submit(self.engine.forget, listener)
            if not self.thread.is_current:
                forgotten.result()

    def chat(
        self,
        messages: Sequence[Message] | Sequence[Sequence[Message]],
        params: SamplingParams | None = None,
        use_tqdm: bool = True,
        **options: Unpack[ChatOptions],
    ) -> list[RequestOutput]:
        """The assistant's answer to one conversation, or to each of several; options are those of `ChatOptions`."""
        is_one = not messages or not isinstance(messages[0], list | tuple)
        conversations: Any = [messages] if is_one else messages
        prompts = [self.encode_chat(conversation, **options) for conversation in conversations]
        return self.generate(prompts, params, use_tqdm)

    def encode_chat(self, messages: Sequence[Message], **options: Unpack[ChatOptions]) -> list[int]:
        """Return the token ids of a conversation in the model's own template, ready for the assistant's answer."""
        if self.tokenizer is None:
            raise ValueError(f"chat needs a tokenizer, and the model {self.name} has none")
        if self.tokenizer.chat_template is None and options.get("chat_template") is None:
            raise ValueError(f"the model {self.name} has no chat template")
        return self.tokenizer.encode_chat(list(messages), limit=self.config.max_model_len, **options)

    def beam_search(
        self,
        prompts: Prompt | Sequence[Prompt],
        beam_width: int = 4,
        max_tokens: int = 16,
        length_penalty: float = 1.0,
        early_stopping: bool | str = False,
    ) -> list[list[Beam]]:
        """Return for each prompt its `beam_width` best continuations, best first, by transformers' rules."""
        check_options(beam_width, max_tokens, length_penalty, early_stopping)
        eos_ids = self.model.config.eos_ids
        searches = []
        for prompt in as_list(prompts):
            ids = self.encode(prompt)
            room = min(max_tokens, self.config.max_model_len + 1 - len(ids))
            searches.append(BeamSearch(ids, beam_width, max(room, 1), length_penalty, early_stopping, eos_ids))
        run_searches(searches, self._likeliest)
        return [search.finished for search in searches]

    def _likeliest(self, texts: list[list[int]], number: int) -> list[Continuations]:
        """Return the most likely next tokens of each text, with their log-probabilities, best first."""
        number = min(number, self.model.config.vocab_size)
        requests = self.generate(texts, SamplingParams(temperature=0, max_tokens=1, logprobs=number), use_tqdm=False)
        found = []
        for request in requests:
            raise_if_failed(request)
            entries = sorted((request.outputs[0].logprobs or [{}])[0].items(), key=lambda entry: entry[1].rank)
            found.append([(token_id, entry.logprob) for token_id, entry in entries])
        return found

    def next_tokens(self, prompt: Prompt, n: int = 10) -> list[TokenProbability]:
        """Return the n most likely next tokens, best first; n up to 1000."""
        if not isinstance(n, int) or not 1 <= n <= MAX_LOGPROBS:
            raise ValueError(f"n must be an integer in [1, {MAX_LOGPROBS}], not {n!r}")
        entries = self._likeliest([self.encode(prompt)], n)[0][:n]
        return [TokenProbability(i, self.engine.text_of(i) or "", math.exp(logprob)) for i, logprob in entries]

    def score(self, prompt: Prompt) -> Score:
        """Score how likely the model finds a text; beyond the context, it is read in windows that overlap by half."""
        window = min(self.config.max_model_len, self.model.config.context_size)
        return self.thread.call(score, self.model, self.encode(prompt), window, self.device)

    def encode(self, prompt: Prompt, parse_special: bool | None = None) -> list[int]:
        """Return a prompt as token ids; text begins with the model's beginning-of-text token where it wants one.

        parse_special: as the LLM's own, unless given.
        """
        return self._as_ids(prompt, self.parse_special if parse_special is None else parse_special, None)

    def encode_request(self, prompt: Prompt, params: SamplingParams) -> list[int]:
        """Return the prompt's ids; ValueError for one that surely does not fit, before all of it is cut into tokens."""
        limit = self.config.max_model_len if params.overflow == "stop" else None
        return self._as_ids(prompt, self.parse_special, limit)

    def _as_ids(self, prompt: Prompt, parse_special: bool, limit: int | None) -> list[int]:
        given = content(prompt)
        if not isinstance(given, str):
            return self.engine.checked_ids(given)
        if self.tokenizer is None:
            raise ValueError(f"the model {self.name} has no tokenizer: give token ids")
        return encode(given, self.tokenizer, parse_special, limit)


class _Ends:
    """Listens to requests; something comes into its queue when one of them ends."""

    def __init__(self) -> None:
        self.queue: SimpleQueue[int] = SimpleQueue()

    def __call__(self, request: RequestOutput) -> None:
        if request.finished:
            self.queue.put(request.request_id)


class _Pieces:
    """Listens to a request of one completion; the pieces of its text come into its queue, and None at the end."""

    def __init__(self) -> None:
        self.queue: SimpleQueue[str | None] = SimpleQueue()
        self._num_seen = 0

    def __call__(self, request: RequestOutput) -> None:
        pieces = request.outputs[0].pieces()
        for piece in filter(None, pieces[self._num_seen :]):
            self.queue.put(piece)
        self._num_seen = len(pieces)
        if request.finished:
            self.queue.put(None)


def _progress(requests: list[RequestOutput], wanted: bool) -> Iterator[RequestOutput]:
    console = Console(stderr=True)
    disable = not (wanted and console.is_terminal and len(requests) > 1)
    return iter(track(requests, "generating", console=console, disable=disable))

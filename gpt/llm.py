"""LLM: the front door. Text or token ids in, completions out; vLLM's words."""

import math
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Unpack

import torch

from octavo.gpt.adapters.rollouts import Rollouts
from octavo.gpt.beam_search import Beam, Continuations, check_options, search
from octavo.gpt.engine import Listener
from octavo.gpt.engine_thread import EngineClosedError, EngineThread, make_engine
from octavo.gpt.listeners import Ends, Pieces, progress
from octavo.gpt.loading.hub import at_revisions
from octavo.gpt.loading.loader import load_model, resolve_device
from octavo.gpt.options.checks import integer
from octavo.gpt.options.generation_config import sampling_defaults
from octavo.gpt.options.lora import Lora
from octavo.gpt.options.names import device_name, dtype_name, graphs_name
from octavo.gpt.options.neutral import EngineOptions, RequestOptions, refuse_others, renamed, shows
from octavo.gpt.outputs import RequestOutput, TokenProbability, likeliest, raise_if_failed
from octavo.gpt.prompts import Conversations, Prompt, Prompts, as_list, text_of
from octavo.gpt.quoting import quoted
from octavo.gpt.runner.kv_cache import plan_memory
from octavo.gpt.sampling_params import MAX_LOGPROBS, RAW, SamplingParams
from octavo.gpt.scoring import ScoresTexts
from octavo.gpt.speculative.choice import chosen
from octavo.gpt.speculative.proposer import Options
from octavo.gpt.tokenizer.chat_template import ChatOptions
from octavo.gpt.tokenizer.tokenizer import Tokenizer
from octavo.kernels import backends
from octavo.kernels.ops import Ops


class LLM(ScoresTexts, Rollouts):
    """A model, its cache and an engine.

    model: a name (`octavo models` lists them), a Hugging Face folder or a GGUF file. backend: a name or an Ops value;
    "auto" is triton on CUDA, else the fastest that runs here. dtype: of activations and cached values. weights: of the
    products: "file" for the blocks of a GGUF file as they are, "dense" for those of dtype, "q8_0", "q4_0" or "q4_1" for
    what dense ones are rounded to, or "auto": "file" for a GGUF file on the cpu backend, else "dense". parse_special:
    whether text in a prompt that spells a control token becomes that token, or stays text. tokenizer: "auto" for the
    model's own, another's name, or None (or `skip_tokenizer_init`) for a model that takes and gives token ids alone.

    At most `max_num_seqs` completions run together and `max_num_waiting` wait; when the cache runs out, `preemption`
    moves the youngest's blocks to host memory and back ("swap"), or drops them and computes its text again as a prompt
    ("recompute"), or whichever is faster ("auto"): the same bits on our own backends. On CUDA, decode steps of triton
    are graphs, captured as the model loads ("startup"), when a size is first needed ("lazy") or not at all ("off");
    elsewhere `cuda_graphs` changes nothing; `enforce_eager` means "off". Bad arguments raise ValueError, missing files
    FileNotFoundError.

    generation_config: where the sampling of requests without SamplingParams is from (`get_default_sampling_params`):
    "auto" for the generation_config.json of the model, "octavo" for SamplingParams' own defaults, or a folder with such
    a file; override_generation_config has values in place of the file's. revision, tokenizer_revision: the branch, tag
    or commit of a name of the hub, which may also end with it: owner/name@REVISION. Other arguments of vLLM's are
    taken where they ask for nothing (`EngineOptions`).

    adapters: folders of LoRA adapters in PEFT's format, or owner/name of the hub, by the names that requests give as
    `lora`; adapter: the one of requests that give none. logprobs_mode: what reported log-probabilities are where a
    request does not say: "raw_logprobs", the model's own, or "processed_logprobs", of what was sampled from, after
    penalties, temperature and filters; those of prompts are always the model's.
    speculative: who guesses tokens ahead, an `NGram`, a `DraftModel`, or "ngram:4" or "FOLDER:3" for short; the text is
    the same, and comes sooner where guesses are right.

    Any number of threads may call at once: their requests share the steps of one engine, which a thread of its own
    runs (see `EngineThread`).
    """

    @shows(EngineOptions)
    def __init__(
        self,
        model: str | Path = "smollm2",
        backend: str | Ops = "auto",
        dtype: str | torch.dtype = "auto",
        device: str | torch.device = "auto",
        max_model_len: int | None = None,
        block_size: int = 16,
        num_blocks: int | None = None,
        max_num_seqs: int = 64,
        max_num_batched_tokens: int = 2048,
        max_num_waiting: int = 4096,
        preemption: str = "auto",
        seed: int | None = 0,
        enable_prefix_caching: bool = True,
        cuda_graphs: str = "startup",
        weights: str = "auto",
        parse_special: bool = False,
        tokenizer: str | Path | None = "auto",
        skip_tokenizer_init: bool = False,
        generation_config: str | Path = "auto",
        override_generation_config: dict[str, Any] | None = None,
        revision: str | None = None,
        tokenizer_revision: str | None = None,
        enforce_eager: bool = False,
        adapter: str | Path | None = None,
        adapters: Mapping[str, str | Path] | None = None,
        logprobs_mode: str = RAW,
        speculative: Options | str | None = None,
        **others: Unpack[EngineOptions],
    ) -> None:
        refuse_others("LLM", others, EngineOptions)
        speculation = chosen(speculative, others.get("speculative_config"))
        graphs = graphs_name(cuda_graphs, enforce_eager)
        self.device = resolve_device(device_name(device))
        self.parse_special = parse_special
        if isinstance(backend, str):
            backend = backends.load(backends.best_for(self.device.type) if backend == "auto" else backend)
        self.thread = EngineThread()
        weakref.finalize(self, self.thread.stop).atexit = False  # the thread's module ends what is left then
        try:
            tokenizer = None if skip_tokenizer_init else tokenizer
            model, tokenizer = at_revisions(model, tokenizer, revision, tokenizer_revision)
            names = dtype_name(dtype), self.device.type
            loaded = self.thread.call(load_model, model, backend, *names, weights, tokenizer)
            self.name, self.tokenizer, self.is_dummy = loaded.name, loaded.tokenizer, loaded.is_dummy
            self.model, self.source = loaded.model, loaded.source
            self.sampling_defaults = sampling_defaults(generation_config, loaded.source, override_generation_config)
            self.dtype = loaded.dtype
            self.config = plan_memory(
                self.model.config, self.dtype, self.device, max_model_len, num_blocks,
                block_size=block_size, max_num_seqs=max_num_seqs, max_num_batched_tokens=max_num_batched_tokens,
                max_num_waiting=max_num_waiting, preemption=preemption, logprobs_mode=logprobs_mode,
            )  # fmt: skip
            self.engine = self.thread.own(
                make_engine, loaded, self.config, self.device, seed or 0, enable_prefix_caching, graphs, speculation
            )
            self.engine.owner = weakref.ref(self)
            self.thread.call(self.engine.runner.adapters.load_all, adapter, adapters or {})
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

    def __repr__(self) -> str:
        number, family = self.model.num_parameters, self.model.config.family
        kinds = f"backend {self.backend}, device {self.device}, {self.dtype}, weights {self.weights}"
        return f"LLM({quoted(self.name)}, {family}, {number:,} parameters, {kinds})"

    @property
    def weights(self) -> str:
        """The formats of the products' weights: "q4_1 and q8_0", or a dtype."""
        return " and ".join(self.model.formats())

    def get_tokenizer(self) -> Tokenizer | None:
        """Return the model's tokenizer, which is not transformers'; None where it has none."""
        return self.tokenizer

    def get_default_sampling_params(self) -> SamplingParams:
        """Return what a request without SamplingParams gets: what generation_config.json says, where it is followed."""
        return SamplingParams(**self.sampling_defaults)

    @property
    def backend(self) -> str:
        return self.model.ops.name

    @property
    def has_unfinished(self) -> bool:
        self.thread.settle()
        return self.engine.has_unfinished

    def load_adapter(self, name: str, folder: str | Path) -> None:
        """Load a LoRA adapter, for requests to name; ValueError or FileNotFoundError says what is wrong."""
        self.thread.call(self.engine.runner.adapters.load, name, folder)

    def unload_adapter(self, name: str) -> None:
        """Forget an adapter; ValueError where there is none of that name, or while requests use it."""
        self.thread.call(self.engine.unload_adapter, name)

    def add(self, prompt: Prompt, params: SamplingParams | None = None, lora: Lora = None) -> int:
        """Queue a request for `step`, and return its number. QueueFullError when `max_num_waiting` wait already."""
        params = params or self.get_default_sampling_params()
        ids = self.encode_request(prompt, params)
        return self.thread.call(self.engine.add, ids, params, text_of(prompt), None, lora).request_id

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

    @shows(RequestOptions)
    def generate(
        self,
        prompts: Prompts,
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        use_tqdm: bool | Callable[..., Any] = True,
        *,
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        lora: Lora | Sequence[Lora] = None,
        lora_request: Lora | Sequence[Lora] = None,
        **others: Unpack[RequestOptions],
    ) -> list[RequestOutput]:
        """Complete each prompt; order is kept. sampling_params: one for all, or one each; `params` is its old name.

        lora: the name of the adapter of all, or of each; `lora_request` is vLLM's word for it.
        use_tqdm: whether several prompts show their progress, or a function that makes the bar.
        """
        refuse_others("generate", others, RequestOptions)
        prompts = as_list(prompts)
        given = self._renamed(sampling_params, params)
        each = list(given) if isinstance(given, Sequence) else [given] * len(prompts)
        if len(each) != len(prompts):
            raise ValueError(f"sampling_params has {len(each)} entries for {len(prompts)} prompts")
        checked = [
            (self.engine.check(self.encode_request(prompt, own), own), own, text_of(prompt))
            for prompt, own in zip(prompts, each, strict=True)
        ]
        listener = Ends()
        try:
            requests = self.thread.call(self.engine.add_all, checked, listener, lora_request if lora is None else lora)
            for request in progress(requests, use_tqdm):
                while not request.finished:
                    listener.queue.get()
        except BaseException:
            self._forget(listener)
            raise
        if error := next((request.error for request in requests if request.error is not None), None):
            raise error
        return requests

    def stream(self, prompt: Prompt, params: SamplingParams | None = None, lora: Lora = None) -> Iterator[str]:
        """Yield the completion's text, piece by piece; leaving the loop ends the request.

        The completion goes on while the caller does other things between two pieces.
        """
        params = params or self.get_default_sampling_params()
        if self.tokenizer is None or not params.detokenize:
            raise ValueError("stream needs a tokenizer and detokenize=True: else use generate with token ids")
        if params.n != 1:
            raise ValueError(f"stream gives one completion, n is {params.n}")
        ids = self.engine.check(self.encode_request(prompt, params), params)
        return self._stream(ids, params, text_of(prompt), lora)

    def _stream(self, ids: list[int], params: SamplingParams, text: str | None, lora: Lora) -> Iterator[str]:
        listener = Pieces()
        try:
            request = self.thread.call(self.engine.add, ids, params, text, listener, lora)
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
        messages: Conversations,
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        use_tqdm: bool | Callable[..., Any] = True,
        *,
        params: SamplingParams | Sequence[SamplingParams] | None = None,
        lora: Lora | Sequence[Lora] = None,
        lora_request: Lora | Sequence[Lora] = None,
        **options: Unpack[ChatOptions],
    ) -> list[RequestOutput]:
        """The assistant's answer to one conversation, or to each of several; options are those of `ChatOptions`."""
        is_one = not messages or not isinstance(messages[0], list | tuple)
        conversations: Any = [messages] if is_one else messages
        prompts = [self.chat_prompt(conversation, **options) for conversation in conversations]
        given = self._renamed(sampling_params, params)
        return self.generate(prompts, given, use_tqdm, lora=lora, lora_request=lora_request)

    def _renamed(self, sampling_params: Any, params: Any) -> SamplingParams | Sequence[SamplingParams]:
        """Return the params under whichever name they came; the defaults where they came under none."""
        given = renamed(sampling_params, params)
        return self.get_default_sampling_params() if given is None else given

    def beam_search(
        self,
        prompts: Prompts,
        beam_width: int = 4,
        max_tokens: int = 16,
        length_penalty: float = 1.0,
        early_stopping: bool | str = False,
        lora: Lora = None,
    ) -> list[list[Beam]]:
        """Return for each prompt its `beam_width` best continuations, best first, by transformers' rules."""
        check_options(beam_width, max_tokens, length_penalty, early_stopping)
        ids, rules = [self.encode(prompt) for prompt in as_list(prompts)], (length_penalty, early_stopping)
        room, eos_ids = self.config.max_model_len + 1, self.model.config.eos_ids
        searches = search(ids, beam_width, max_tokens, room, rules, eos_ids, partial(self._likeliest, lora=lora))
        decode = None if self.tokenizer is None else partial(self.tokenizer.decode, skip_special_tokens=True)
        return [each.results(decode) for each in searches]

    def _likeliest(self, texts: list[list[int]], number: int, lora: Lora) -> list[Continuations]:
        """Return the most likely next tokens of each text, with their log-probabilities, best first."""
        number = min(number, self.model.config.vocab_size)
        params = SamplingParams(temperature=0, max_tokens=1, logprobs=number)
        return [likeliest(request) for request in self.generate(texts, params, use_tqdm=False, lora=lora)]

    def next_tokens(
        self, prompt: Prompt, n: int = 10, sampling_params: SamplingParams | None = None, lora: Lora = None
    ) -> list[TokenProbability]:
        """Return the n most likely next tokens, best first; n up to 1000.

        sampling_params: probabilities are those after its temperature, top_k, top_p and min_p, of what these keep.
        """
        n = integer("n", n, 1, MAX_LOGPROBS)
        if sampling_params is not None:
            candidates = self.draw(prompt, sampling_params, n, lora).candidates
            found = [(each.token_id, each.kept) for each in candidates if each.kept]
        else:
            first = self._likeliest([self.encode(prompt)], n, lora)[0][:n]
            found = [(token_id, math.exp(logprob)) for token_id, logprob in first]
        return [TokenProbability(i, self.engine.text_of(i) or "", probability) for i, probability in found]

"""The model class `octavo` of EleutherAI's lm-eval, which knows no plug-ins; so its command line is run from here:

python -m octavo.gpt.adapters.lm_eval --model octavo --model_args pretrained=smollm2 --tasks hellaswag
"""

import sys
from typing import Any

import torch
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.models.utils import maybe_truncate, normalize_gen_kwargs, postprocess_generated_text
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from octavo.gpt import LLM, SamplingParams

Pair = tuple[Any, list[int], list[int]]  # the key for lm-eval's cache, ids of the context, ids of the continuation


@register_model("octavo")
class OctavoLM(TemplateLM):
    """An LLM as lm-eval asks it. Scores do not depend on the batch size.

    pretrained: the model, as of LLM, whose other arguments may be given too. batch_size: how many requests run at once
    (`max_num_seqs`). max_length: the longest context (`max_model_len`). max_gen_toks: for tasks that do not say it.
    """

    def __init__(
        self,
        pretrained: str = "smollm2",
        batch_size: int | str = "auto",
        max_batch_size: int | None = None,
        device: str | None = None,
        max_length: int | None = None,
        max_gen_toks: int = 256,
        **options: Any,
    ) -> None:
        super().__init__()
        self.batch_size = max_batch_size or 64 if str(batch_size).startswith("auto") else int(batch_size)
        if device is not None and torch.cuda.is_available():  # lm-eval asks for one wherever it runs
            options["device"] = device
        self.llm = LLM(pretrained, max_model_len=max_length, max_num_seqs=self.batch_size, **options)
        if self.llm.tokenizer is None:
            raise ValueError(f"lm-eval gives texts, and the model {pretrained} has no tokenizer")
        self.vocabulary, self.max_gen_toks = self.llm.tokenizer, max_gen_toks

    @property
    def max_length(self) -> int:
        return self.llm.config.max_model_len

    @property
    def eot_token_id(self) -> int:
        return 0 if self.vocabulary.eos_id is None else self.vocabulary.eos_id

    @property
    def prefix_token_id(self) -> int:
        """What a text without context follows on."""
        return self.eot_token_id if self.vocabulary.bos_id is None else self.vocabulary.bos_id

    @property
    def tokenizer_name(self) -> str:
        return self.llm.name

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        return str(self.vocabulary.chat_template) if chat_template else None

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The conversation as text, whose control tokens `tok_encode` knows again."""
        continues = not add_generation_prompt and chat_history[-1]["role"] == "assistant"
        prompt = self.llm.chat_prompt(
            chat_history, add_generation_prompt=add_generation_prompt, continue_final_message=continues
        )
        return self.vocabulary.decode(prompt["prompt_token_ids"])

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """The ids of a text, the ones that this model's texts begin with before them, unless they are there."""
        ids, before = self.vocabulary.encode(string, parse_special=True), list(self.vocabulary.before)
        return ids if add_special_tokens is False or ids[: len(before)] == before else before + ids

    def _loglikelihood_tokens(
        self, requests: list[Pair], disable_tqdm: bool = False, **others: Any
    ) -> list[tuple[float, bool]]:
        """The last id is asked as the next token; only where there are more, all of the prompt's are scored."""
        texts = [(context + continuation)[-self.max_length - 1 :] for _, context, continuation in requests]
        params = [
            SamplingParams(
                temperature=0, max_tokens=1, ignore_eos=True, detokenize=False, logprob_token_ids=ids[-1:],
                prompt_logprobs=0 if len(continuation) > 1 else None,
            )
            for ids, (_, _, continuation) in zip(texts, requests, strict=True)
        ]  # fmt: skip
        answers = self.llm.generate([ids[:-1] for ids in texts], params, use_tqdm=not disable_tqdm)
        found: list[tuple[float, bool]] = []
        for answer, (key, _, continuation), ids in zip(answers, requests, texts, strict=True):
            entries = [*(answer.prompt_logprobs or [None] * (len(ids) - 1)), *(answer.outputs[0].logprobs or [])]
            first = max(len(ids) - len(continuation), 1)
            chosen = [entry[i] for entry, i in zip(entries[first:], ids[first:], strict=True) if entry is not None]
            found.append((sum(each.logprob for each in chosen), all(each.rank == 1 for each in chosen)))
            if key is not None:
                self.cache_hook.add_partial("loglikelihood", key, found[-1])
        return found

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        windows: list[Pair] = []
        ends = []
        for request in requests:
            ids = self.tok_encode(request.args[0], add_special_tokens=False)
            pieces = get_rolling_token_windows(ids, self.prefix_token_id, self.max_length, context_len=1)
            windows += [(None, *make_disjoint_window(piece)) for piece in pieces]
            ends.append(len(windows))
        scores = [score for score, _ in self._loglikelihood_tokens(windows, disable_tqdm)]
        totals = [sum(scores[start:end]) for start, end in zip([0, *ends], ends, strict=False)]
        for request, total in zip(requests, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return totals

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        prompts: list[Any] = []
        params, stops = [], []
        for request in requests:
            context, options = request.args
            known: dict[str, Any] = {"temperature": 0.0, **normalize_gen_kwargs(options, self.max_gen_toks)}
            known.pop("do_sample", None)
            end = self.vocabulary.token_text(self.eot_token_id)  # it ends a text however it is spelled, as for hf
            stops.append([text for text in (*known.pop("until"), end) if text])
            ids, room = maybe_truncate(self.tok_encode(context), known.pop("max_gen_toks"), self.max_length)
            prompts.append(ids)
            params.append(SamplingParams(**known, stop=stops[-1], max_tokens=room))
        answers = self.llm.generate(prompts, params, use_tqdm=not disable_tqdm)
        texts = [
            postprocess_generated_text(answer.outputs[0].text, stop, None)
            for answer, stop in zip(answers, stops, strict=True)
        ]
        for request, text in zip(requests, texts, strict=True):
            self.cache_hook.add_partial("generate_until", request.args, text)
        return texts


if __name__ == "__main__":
    from lm_eval.__main__ import cli_evaluate

    sys.exit(cli_evaluate())

"""Texts as tokens, and how likely they are: /tokenize, /detokenize, /v1/score."""

import asyncio
import math
from typing import Any

from fastapi import APIRouter

from octavo.gpt.outputs import RequestOutput
from octavo.gpt.prompts import as_list
from octavo.gpt.server.api.answers import head, usage
from octavo.gpt.server.api.chat import render
from octavo.gpt.server.api.logprobs import finite
from octavo.gpt.server.api.protocol import DetokenizeRequest, Generation, ScoreRequest, TokenizeRequest
from octavo.gpt.server.api.routes import Asked
from octavo.gpt.server.errors import APIError, answered
from octavo.gpt.server.serving import Serving, Work
from octavo.gpt.tokenizer.tokenizer import Tokenizer

router = APIRouter()


@router.post("/tokenize")
async def tokenize(request: TokenizeRequest, serving: Asked) -> dict[str, Any]:
    """Return the token ids of a text or of a conversation."""
    serving.model_and_adapter(request.model)
    if (request.prompt is None) == (request.messages is None):
        raise APIError("tokenize takes either prompt or messages")
    tokenizer = _tokenizer(serving)
    with answered():
        if request.prompt is not None:
            ids = await asyncio.to_thread(tokenizer.encode, request.prompt, serving.llm.parse_special)
            ids = tokenizer.as_prompt(ids) if request.add_special_tokens else ids
        else:
            ids = list((await render(request, serving))["prompt_token_ids"])
    texts = [serving.llm.engine.text_of(token_id) for token_id in ids] if request.return_token_strs else None
    limit = serving.llm.config.max_model_len
    return {"count": len(ids), "max_model_len": limit, "tokens": ids, "token_strs": texts}


@router.post("/detokenize")
async def detokenize(request: DetokenizeRequest, serving: Asked) -> dict[str, Any]:
    """Return the text of token ids, and on demand each one's own."""
    serving.model_and_adapter(request.model)
    tokenizer = _tokenizer(serving)
    with answered():
        text = await asyncio.to_thread(tokenizer.decode, request.tokens)
    if not request.return_token_strs:
        return {"prompt": text}
    return {"prompt": text, "token_strs": [serving.llm.engine.text_of(token_id) for token_id in request.tokens]}


@router.post("/v1/score")
async def score(request: ScoreRequest, serving: Asked) -> dict[str, Any]:
    """Return how likely the model finds each text: mean negative log-likelihood in nats, perplexity, each token's."""
    model, adapter = serving.model_and_adapter(request.model)
    neutral = {"temperature": 0.0, "prompt_logprobs": 0, "max_tokens": 1}
    params = serving.params(Generation(), {}, **neutral)
    prompts = await serving.encoded(as_list(request.prompt), params)
    if any(len(prompt["prompt_token_ids"]) < 2 for prompt in prompts):
        raise APIError("score needs at least two tokens, one to predict the other from", param="prompt")
    requests = await serving.finished(Work(model, prompts, params, adapter))
    data = [{"index": index, "object": "score", **_score(each)} for index, each in enumerate(requests)]
    return {**head("list", "score", model), "data": data, "usage": usage(requests, has_output=False)}


def _score(request: RequestOutput) -> dict[str, Any]:
    pairs = zip(request.prompt_token_ids[1:], (request.prompt_logprobs or [])[1:], strict=True)
    found = [finite(step[token_id].logprob) for token_id, step in pairs if step is not None]
    nll = -sum(found) / len(found)
    perplexity = math.exp(nll) if nll < 700 else None  # JSON has no infinity
    return {"nll": nll, "perplexity": perplexity, "num_tokens": len(found), "token_logprobs": found}


def _tokenizer(serving: Serving) -> Tokenizer:
    if serving.llm.tokenizer is None:
        raise APIError(f"the model {serving.model_name} has no tokenizer")
    return serving.llm.tokenizer

"""A model folder small enough to load in a moment, with a tokenizer, so that every front door can be tried on it."""

from pathlib import Path
from typing import Any

from octavo.gpt import LLM, SamplingParams

from checkpoints import LLAMA, llama_shapes, random_tensors, save_folder
from made_tokenizers import RULES, save, train

CHATML = (
    "{% for message in messages %}{{ '<s>' + message['role'] + '\n' + message['content'] | trim + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<s>assistant\n' }}{% endif %}"
)
GREEDY = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)
LIMITS = {"max_model_len": 64, "block_size": 4, "num_blocks": 64, "dtype": "float32"}


def save_tiny(folder: Path, chat_template: str = CHATML, **config: Any) -> Path:
    """A Llama of a few thousand weights and a byte-level BPE; config: what differs in config.json."""
    tokenizer = train(RULES["smollm"])
    shape = {"vocab_size": tokenizer.get_vocab_size(), "max_position_embeddings": 128, "eos_token_id": 1}
    config = LLAMA | shape | {"bos_token_id": 0} | config
    save_folder(folder, config, random_tensors(llama_shapes(config)))
    return save(tokenizer, folder, bos_token="<s>", eos_token="<|im_end|>", chat_template=chat_template)


def load_tiny(folder: Path, backend: str = "cpu", **options: Any) -> LLM:
    return LLM(folder, backend=backend, **{**LIMITS, **options})


def ids_of(llm: LLM, prompts: list[Any], params: Any = GREEDY) -> list[list[int]]:
    """The first completion's ids of each prompt."""
    return [list(request.outputs[0].token_ids) for request in llm.generate(prompts, params, use_tqdm=False)]

"""Chat templates of real models, as transformers renders them; OCTAVO_REAL names the folder that holds `templates/`."""

import os
import re
from pathlib import Path
from typing import Any

import pytest
from transformers.utils.chat_template_utils import render_jinja_template

from octavo.gpt.tokenizer.chat_template import render_hidden

from chats import CONVERSATIONS, FORGED

FOLDER = os.environ.get("OCTAVO_REAL")
TEMPLATES = sorted(Path(FOLDER, "templates").glob("*.jinja")) if FOLDER else []
pytestmark = pytest.mark.skipif(not TEMPLATES, reason="OCTAVO_REAL names no folder of real files")
TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}
IN_TEXT = re.compile(r"<[^<>\s{}']{2,40}>|\[/?[A-Z_]{3,40}\]")  # what looks like a control token


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.stem)
@pytest.mark.parametrize("name", CONVERSATIONS)
def test_as_transformers(path: Path, name: str) -> None:
    template = path.read_text("utf-8")
    messages, options = CONVERSATIONS[name]
    specials = {*IN_TEXT.findall(template), FORGED}
    assert ours(template, messages, specials, **options) == theirs(template, messages, **options)


def theirs(template: str, messages: list[dict[str, Any]], **options: Any) -> str | None:
    try:
        return render_jinja_template(
            [messages], chat_template=template, **{"add_generation_prompt": True} | TOKENS | options
        )[0][0]
    except Exception:  # whatever a template raises, and what it was not written for
        return None


def ours(template: str, messages: list[dict[str, Any]], specials: set[str], **options: Any) -> str | None:
    words = {"tools", "documents", "add_generation_prompt", "continue_final_message"}
    variables = {name: options.pop(name) for name in [*options] if name not in words}
    try:
        text, escaper = render_hidden(
            template, messages, specials, TOKENS,
            chat_template_kwargs=variables, chat_template_content_format="openai", **options,
        )  # fmt: skip
    except ValueError:
        return None
    assert FORGED not in text  # what messages and tools say of control tokens stays text
    return escaper.reveal(text)

"""Answers in a form: OpenAI's `response_format`, vLLM's words beside it, and what is refused."""

import json

import jsonschema
import pytest

from schemas import SCHEMAS
from served import served

openai = pytest.importorskip("openai")

SCHEMA = SCHEMAS["unicode enum"]  # without white space, of which a random model would write too much
FORMAT = {"type": "json_schema", "json_schema": {"name": "nested", "schema": SCHEMA, "strict": True}}


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    with (
        served(tmp_path_factory.mktemp("served") / "model") as server,
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client,
    ):
        yield client


def chat(client, **options):
    messages = [{"role": "user", "content": "the sun"}]
    return client.chat.completions.create(model="tiny", messages=messages, max_tokens=80, seed=3, **options)


def test_a_chat_in_a_schema_whole_and_streamed(client):
    choice = chat(client, response_format=FORMAT).choices[0]
    assert choice.finish_reason == "stop"
    jsonschema.validate(json.loads(choice.message.content), SCHEMA)
    chunks = chat(client, response_format=FORMAT, stream=True)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == choice.message.content


@pytest.mark.parametrize(
    "extra",
    [{"structured_outputs": {"choice": ["yes", "no"]}}, {"guided_choice": ["yes", "no"]}, {"guided_regex": "yes|no"}],
    ids=str,
)
def test_vllm_s_words(client, extra):
    answer = client.completions.create(model="tiny", prompt="the", max_tokens=8, extra_body=extra)
    assert answer.choices[0].text in ("yes", "no")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"response_format": FORMAT | {"json_schema": {"name": "a", "schema": {"type": "x"}}}}, "Invalid type: x"),
        ({"response_format": {"type": "yaml"}}, "response_format must have the type"),
        ({"extra_body": {"guided_regex": "("}}, "structured regex cannot be followed: unclosed group"),
    ],
)
def test_what_cannot_be_followed_is_a_400(client, options, message):
    with pytest.raises(openai.BadRequestError, match=message):
        chat(client, **options)

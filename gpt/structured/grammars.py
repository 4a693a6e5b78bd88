"""Forms in llguidance's words. What the library cannot follow, it refuses when it compiles them."""

import json
from collections.abc import Collection
from typing import Any

from octavo.gpt.structured.params import StructuredOutputsParams

SPACE = r"[ \t\n\r]{1,32}"  # between the parts of JSON: without an end a small model would go on with it for ever


def grammar_of(params: StructuredOutputsParams, specials: Collection[str]) -> str:
    """Return the grammar of an output; specials: the texts of the control tokens. ValueError where there is none."""
    from llguidance import LLMatcher, grammar_from

    kind, value = params.kind, getattr(params, params.kind)
    if kind == "structural_tag":
        return _structural_tag(json.loads(value), specials)
    if kind == "choice":
        choices = " | ".join(json.dumps(each, ensure_ascii=False) for each in value)
        return LLMatcher.grammar_from_lark(f"start: CHOICE\nCHOICE: {choices}")  # one lexeme, however many there are
    if kind in ("json", "json_object"):
        schema = {"type": "object"} if kind == "json_object" else json.loads(value)
        if params.disable_additional_properties:
            _close_objects(schema)
        options: Any = (
            {"whitespace_flexible": False} if params.disable_any_whitespace else {"whitespace_pattern": SPACE}
        )
        return LLMatcher.grammar_from_json_schema(schema, overrides=options)
    return grammar_from("regex" if kind == "regex" else "grammar", value)


def _close_objects(schema: Any) -> None:
    """Allow no properties but those that are named, in every schema that names some and does not say otherwise."""
    parts = schema.values() if isinstance(schema, dict) else schema if isinstance(schema, list) else ()
    for part in parts:
        _close_objects(part)
    if isinstance(schema, dict) and {"properties", "patternProperties"} & schema.keys():
        schema.setdefault("additionalProperties", False)


def _structural_tag(tag: Any, specials: Collection[str]) -> str:
    """vLLM's {"triggers": [text], "structures": [{"begin": text, "schema": schema, "end": text}]}."""
    from llguidance import StructTag

    tags = []
    try:
        for each in tag["structures"]:
            trigger = next((text for text in tag["triggers"] if text and each["begin"].startswith(text)), None)
            if trigger is None:
                raise ValueError(f"no trigger begins {json.dumps(each['begin'])}")
            tags.append(StructTag(trigger=trigger, begin=each["begin"], grammar=each["schema"], end=each["end"]))
    except KeyError as missing:
        raise ValueError(f"it lacks {missing}") from None
    except (TypeError, AttributeError):
        raise ValueError("triggers and structures must be lists, of texts and of begin, schema and end") from None
    if not tags:
        raise ValueError("structures is empty")
    return StructTag.to_grammar(tags, assume_special=all(each.trigger in specials for each in tags))

"""The fields of a request's body, OpenAI's and vLLM's, that ask for a form of the output."""

from collections.abc import Mapping
from typing import Any

from octavo.gpt.quoting import quoted
from octavo.gpt.structured.params import StructuredOutputsParams

GUIDED = ("json", "regex", "choice", "grammar", "json_object")
FIELDS = ("response_format", "structured_outputs", *(f"guided_{kind}" for kind in GUIDED))


def structured_of(body: Mapping[str, Any]) -> StructuredOutputsParams | None:
    """Return what `FIELDS` of the body ask for, None where they ask for nothing; ValueError names the field."""
    found = {name: form for name in FIELDS if (form := _form(name, body.get(name))) is not None}
    if len(found) > 1:
        raise ValueError(f"{' and '.join(found)} both ask for a form of the output: give one")
    return next(iter(found.values()), None)


def _form(name: str, value: Any) -> StructuredOutputsParams | None:
    if value is None or value is False:
        return None
    if name.startswith("guided_"):
        return StructuredOutputsParams(**{name.removeprefix("guided_"): value})
    return _response_format(value) if name == "response_format" else StructuredOutputsParams.from_any(name, value)


def _response_format(value: Any) -> StructuredOutputsParams | None:
    """OpenAI's {"type": "text" | "json_object" | "json_schema"}, and vLLM's "structural_tag"."""
    kind = value.get("type") if isinstance(value, Mapping) else None
    if kind == "text":
        return None
    if kind == "json_object":
        return StructuredOutputsParams(json_object=True)
    if kind == "structural_tag":
        return StructuredOutputsParams(structural_tag=value)
    if kind != "json_schema":
        shown = quoted(value if kind is None else kind)
        raise ValueError(
            f"response_format must have the type text, json_object, json_schema or structural_tag, not {shown}"
        )
    described = value.get("json_schema")
    if not isinstance(described, Mapping) or described.get("schema") is None:
        raise ValueError("response_format of type json_schema needs json_schema.schema")
    return StructuredOutputsParams(json=described["schema"])

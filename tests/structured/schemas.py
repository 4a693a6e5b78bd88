"""Twenty schemas whose every output is short: nested, enums, unicode, numbers, references, alternatives."""

from typing import Any

SHORT: dict[str, Any] = {"type": "string", "maxLength": 6}
DIGIT: dict[str, Any] = {"type": "integer", "minimum": 0, "maximum": 9}


def record(**properties: Any) -> dict[str, Any]:
    """An object of just these properties."""
    return {"type": "object", "properties": properties, "required": [*properties], "additionalProperties": False}


SCHEMAS: dict[str, dict[str, Any]] = {
    "record": record(name=SHORT, age={"type": "integer", "minimum": 0, "maximum": 130}),
    "nested": record(a=record(b=record(c=record(d=DIGIT)), e=SHORT)),
    "enum": record(colour={"enum": ["red", "green", "blue"]}, size={"enum": [1, 2.5, None, True]}),
    "unicode enum": {"enum": ["Zürich", "東京", "🙂🙃", "naïve", 'a "quote"', "back\\slash"]},
    "unicode keys": record(**{"größe": DIGIT, "名前": SHORT, "🙂": {"type": "boolean"}}),
    "const": record(version={"const": "v1.0"}, value={"const": [1, {"a": "ü"}]}),
    "integers": {
        "type": "array", "items": {"type": "integer", "minimum": -50, "maximum": 1000}, "minItems": 1, "maxItems": 4,
    },
    "numbers": record(
        x={"type": "number", "minimum": -1.5, "maximum": 2.25},
        y={"type": "number", "exclusiveMinimum": 0, "maximum": 1},
    ),
    "multiples": record(even={"type": "integer", "minimum": 0, "maximum": 200, "multipleOf": 7}),
    "booleans": {"type": "array", "items": {"type": ["boolean", "null"]}, "minItems": 2, "maxItems": 5},
    "pattern": record(code={"type": "string", "pattern": "^[A-Z]{2}-[0-9]{3}$"}),
    "unicode pattern": record(word={"type": "string", "pattern": "^[äöüß]{1,5}$"}),
    "formats": record(day={"type": "string", "format": "date"}, id={"type": "string", "format": "uuid"}),
    "lengths": record(a={"type": "string", "minLength": 3, "maxLength": 5}, b={"type": "string", "maxLength": 0}),
    "anyOf": {"anyOf": [record(cat=DIGIT), record(dog=SHORT), {"type": "null"}]},
    "references": {
        "$defs": {"point": record(x=DIGIT, y=DIGIT)},
        "type": "array", "items": {"$ref": "#/$defs/point"}, "minItems": 1, "maxItems": 3,
    },
    "tuple": {"type": "array", "prefixItems": [DIGIT, SHORT, {"type": "boolean"}], "items": False, "minItems": 3},
    "optional": {
        "type": "object", "properties": {"a": DIGIT, "b": SHORT, "c": {"type": "null"}}, "required": ["b"],
        "additionalProperties": False,
    },
    "allOf": {"allOf": [record(a=DIGIT), {"properties": {"a": {"minimum": 5}}}]},
    "deep list": {
        "type": "array", "minItems": 1, "maxItems": 2,
        "items": {"type": "array", "maxItems": 2, "items": {"type": "array", "items": DIGIT, "maxItems": 2}},
    },
}  # fmt: skip

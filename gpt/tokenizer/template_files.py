"""Where the files of a model keep chat templates: one, or several with names, of which one is the default."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from octavo.gpt.loading.files import is_folder, is_there, read_text
from octavo.gpt.quoting import quoted

Templates = str | Mapping[str, str] | None

GGUF_KEY = "tokenizer.chat_template"


def folder_templates(folder: Path, config: Mapping[str, Any]) -> Templates:
    """Return the templates of a Hugging Face folder, whose files go before what `tokenizer_config.json` says.

    `chat_template.jinja` and `additional_chat_templates/NAME.jinja`; the configuration has one text, or a list of
    {"name": str, "template": str}.
    """
    source = f"{folder / 'tokenizer_config.json'}: chat_template"
    listed = config.get("chat_template")
    found = _listed(listed, source) if isinstance(listed, list) else {"default": listed}
    if is_there(path := folder / "chat_template.jinja"):
        found = {"default": read_text(path)}
    if is_folder(more := folder / "additional_chat_templates"):
        found |= {path.stem: read_text(path) for path in sorted(more.glob("*.jinja"))}
    return _checked(found, source)


def gguf_templates(metadata: Mapping[str, Any], source: str) -> Templates:
    """Return the templates of a GGUF file: `tokenizer.chat_template` and `tokenizer.chat_template.NAME`."""
    names = [key for key in metadata if key.startswith(f"{GGUF_KEY}.")]
    found = {name.removeprefix(f"{GGUF_KEY}."): metadata[name] for name in names}
    return _checked({"default": metadata.get(GGUF_KEY), **found}, f"{source}: {GGUF_KEY}")


def _listed(entries: list[Any], source: str) -> dict[str, Any]:
    for entry in entries:
        if not isinstance(entry, dict) or not isinstance(entry.get("name"), str) or "template" not in entry:
            raise ValueError(f"{source} must list names and templates, not {quoted(entry, 40)}")
    return {entry["name"]: entry["template"] for entry in entries}


def _checked(found: Mapping[str, Any], source: str) -> Templates:
    templates = {name: template for name, template in found.items() if template is not None}
    for template in templates.values():
        if not isinstance(template, str):
            raise ValueError(f"{source} must be text, not {type(template).__name__}")
    return templates["default"] if templates.keys() == {"default"} else templates or None

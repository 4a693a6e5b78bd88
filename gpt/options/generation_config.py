"""generation_config.json: how a model's makers mean it to be sampled, followed where a caller does not say.

The rules are vLLM's: these fields are what a request without SamplingParams gets, the others of the file are not read;
its end-of-text ids count in any case, as facts of the model (loading/hf.py).
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from octavo.gpt.loading.files import is_folder, is_there, read_json
from octavo.gpt.quoting import quoted
from octavo.gpt.sampling_params import SamplingParams

FILE = "generation_config.json"
OWN = "octavo", "vllm"  # names of SamplingParams' own defaults

# As the file calls them -> as SamplingParams does.
FIELDS = {
    "temperature": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "min_p": "min_p",
    "repetition_penalty": "repetition_penalty",
    "max_new_tokens": "max_tokens",
}


def sampling_defaults(choice: Any, source: Path | None, changes: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The fields of SamplingParams that the file says, by name.

    choice: "auto" for the file beside the model, if there is one; "octavo" for none; else a folder that has one.
    source: the model's folder or file. changes: what counts in place of the file's values, in the file's words.
    ValueError names the file and the field at fault.
    """
    path = _path(choice, source)
    table = {**(read_json(path) if path is not None else {}), **(changes or {})}
    found = {own: table[name] for name, own in FIELDS.items() if table.get(name) is not None}
    try:
        SamplingParams(**found)
    except ValueError as error:
        where = path if path is not None else "override_generation_config"
        raise ValueError(f"{where}: {error} (generation_config='octavo' leaves it unread)") from None
    return found


def _path(choice: Any, source: Path | None) -> Path | None:
    if choice in OWN:
        return None
    if choice == "auto":
        return source / FILE if source is not None and is_folder(source) and is_there(source / FILE) else None
    folder = Path(choice) if isinstance(choice, str | Path) else None
    if folder is None or not is_folder(folder) or not is_there(folder / FILE):
        raise ValueError(f"generation_config must be auto, octavo or a folder with {FILE}, not {quoted(choice)}")
    return folder / FILE

"""Replay: a receipt's request is generated again, and compared with what the receipt says came out."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from octavo.gpt.llm import LLM
from octavo.gpt.loading.files import parse_json, read_text
from octavo.gpt.outputs import RequestOutput
from octavo.gpt.quoting import quoted
from octavo.gpt.receipts.receipt import Asked, asked, receipt


class Replayed(NamedTuple):
    """What became of a receipt: how the replay differs first, None where it is equal."""

    line: int
    num_tokens: int
    difference: str | None


class _Line(NamedTuple):
    number: int
    data: dict[str, Any]
    asked: Asked


def replay(path: Path, load: Callable[[Mapping[str, Any]], LLM]) -> list[Replayed]:
    """Replay every receipt of a file, a line each; `load` makes the LLM of a receipt's `model`.

    Those of one model are generated together: company changes no bit. ValueError names the file and the line that
    holds no receipt.
    """
    lines = _read(path)
    found: list[Replayed] = []
    for model in {repr(each.asked.model): each.asked.model for each in lines}.values():
        group = [each for each in lines if each.asked.model == model]
        with load(model) as llm:
            _check(path, llm, group)
            prompts, params = [e.asked.prompt_token_ids for e in group], [e.asked.params for e in group]
            requests = llm.generate(prompts, params, use_tqdm=False)
            found += map(_replayed, group, requests)
    return sorted(found)


def _read(path: Path) -> list[_Line]:
    lines = []
    for number, text in enumerate(read_text(path).split("\n"), start=1):
        if text.strip():
            where = f"{path}: line {number}"
            data = parse_json(text.encode(), f"{where}: not valid JSON")
            if not isinstance(data, dict):
                raise ValueError(f"{where}: not a receipt")
            lines.append(_Line(number, data, _at(where, asked, data)))
    if not lines:
        raise ValueError(f"{path}: no receipt in it")
    return lines


def _check(path: Path, llm: LLM, group: Sequence[_Line]) -> None:
    for each in group:
        _at(f"{path}: line {each.number}", llm.engine.check, each.asked.prompt_token_ids, each.asked.params)


def _at(where: str, function: Callable[..., Any], *arguments: Any) -> Any:
    try:
        return function(*arguments)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{where}: {error}") from None


def _replayed(line: _Line, request: RequestOutput) -> Replayed:
    then, now = line.data, receipt(request)
    difference = _difference(then, now)
    if difference is not None and (changed := _changed(then, now)):
        difference += f" ({', '.join(changed)})"
    return Replayed(line.number, sum(len(each["token_ids"]) for each in now["outputs"]), difference)


def _difference(then: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """The first difference, in words; what is compared of two receipts is which weights, and the outcome."""
    if then["weights_hash"] != now["weights_hash"]:
        old, new = (quoted(each["weights_hash"]) for each in (then, now))
        return f"the weights are others: their hash was {old}, and is {new}"
    if len(then["outputs"]) != len(now["outputs"]):
        return f"{len(then['outputs'])} completions there, {len(now['outputs'])} now"
    where = "log-probabilities of the prompt's token"
    if found := _first(where, then.get("prompt_logprob_hashes"), now["prompt_logprob_hashes"]):
        return found
    for index, (old, new) in enumerate(zip(then["outputs"], now["outputs"], strict=True)):
        found = _first("token", old["token_ids"], new["token_ids"]) or _first(
            "log-probabilities of token", old.get("logprob_hashes"), new["logprob_hashes"]
        )
        if not found and old["finish_reason"] != new["finish_reason"]:
            found = f"finish_reason was {quoted(old['finish_reason'])}, and is {quoted(new['finish_reason'])}"
        if found:
            return found if len(now["outputs"]) == 1 else f"completion {index}: {found}"
    return None


def _first(what: str, then: Any, now: Any) -> str | None:
    """Where two lists differ first, in words."""
    then, now = then if isinstance(then, list) else [], now or []
    for index in range(max(len(then), len(now))):
        old, new = (quoted(x[index]) if index < len(x) else "missing" for x in (then, now))
        if old != new:
            return f"{what} {index} was {old}, and is {new}"
    return None


def _changed(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What else is not as it was: versions, and the machine."""
    old, new = ({**each["versions"], "machine": each["machine"]} for each in (then, now))
    return [
        f"{name} {quoted(old.get(name))} then, {quoted(value)} now"
        for name, value in new.items()
        if old.get(name) != value
    ]

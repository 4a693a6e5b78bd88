"""The command `octavo`: what it can be asked, and what it does then. Bad input is one line and exit code 2."""

import argparse
import os
import sys
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import Field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args, get_type_hints

import octavo.gpt
from octavo.gpt.cli import forms, output, play, replay, serve, tables
from octavo.gpt.cli.process import PATIENCE, Parser, complain, run, run_process
from octavo.gpt.quoting import quoted
from octavo.gpt.sampling_params import SamplingParams

if TYPE_CHECKING:  # PyTorch is imported by what loads a model, and by nothing else
    from octavo.gpt.llm import LLM

MODEL_OPTIONS: tuple[tuple[str, tuple[str, ...], str], ...] = (
    ("backend", ("reference", "cpu", "triton"), ""),
    ("dtype", ("float32", "bfloat16", "float16"), "of activations: "),
    ("weights", ("file", "dense", "q8_0", "q4_0", "q4_1"), "as a GGUF file has them, as --dtype, or in a format: "),
    ("device", ("cpu", "cuda"), ""),
)
OPEN = {"backend": " or package.module:NAME"}  # what an option takes besides its choices
SAMPLING_OPTIONS = {field.name: field for field in fields(SamplingParams) if "help" in field.metadata}
DRAW_OPTIONS = "temperature", "top_k", "top_p", "min_p", "seed"
DEFAULTS = {"max_tokens": 256}  # of the command line, where they are not SamplingParams' own
METAVARS: dict[type, str] = {int: "N", float: "X", str: "RULE"}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command, and return the exit code; without argv, as all that this process does."""
    if argv is None:
        return run_process("octavo", lambda: _run(sys.argv[1:]), needs_output=True, patience=PATIENCE)
    return run("octavo", lambda: _run(argv))


def _run(argv: Sequence[str]) -> int | None:
    arguments = _parser().parse_args(argv)
    with warnings.catch_warnings():
        warnings.showwarning = _warning_line
        code: int | None = arguments.run(arguments)
    return code


def _warning_line(message: Warning | str, *_: Any, **__: Any) -> None:
    complain("octavo", str(message))


def generate(arguments: argparse.Namespace) -> None:
    """Stream one completion, or print several."""
    _params(arguments)  # refused before the model is read
    llm = _llm(arguments)
    params = _params(arguments, llm)
    if arguments.json or params.n > 1 or params.logprobs is not None or arguments.receipt:
        reported = params.replace(logprobs=0) if arguments.receipt and params.logprobs is None else params
        request = llm.generate([arguments.prompt], reported)[0]
        if arguments.receipt:
            replay.write(arguments.receipt, request)
        output.json_line(output.request_dict(request)) if arguments.json else output.completions(request, arguments.raw)
        if params.logprobs is not None and not arguments.json:
            tables.logprobs(request)
    else:
        output.stream(llm, llm.encode(arguments.prompt), params, arguments.stats, arguments.raw)


def chat(arguments: argparse.Namespace) -> None:
    """Answer one question, or hold a conversation until the input ends."""
    params = _params(arguments)
    if params.n > 1:
        raise ValueError(f"chat gives one answer, n is {params.n}")
    llm = _llm(arguments)
    params = _params(arguments, llm)
    messages = [{"role": "system", "content": arguments.system}] if arguments.system else []
    question = arguments.question if arguments.question is not None else output.ask(llm)
    while question is not None:
        messages.append({"role": "user", "content": question})
        if arguments.json:
            request = llm.chat(messages, params)[0]
            output.json_line(output.request_dict(request))
            answer = request.outputs[0].text
        else:
            answer = output.stream(llm, llm.encode_chat(messages), params, arguments.stats, arguments.raw)
        messages.append({"role": "assistant", "content": answer})
        question = None if arguments.question is not None else output.ask(llm)


def next_tokens(arguments: argparse.Namespace) -> None:
    """Show the most likely next tokens, with bars."""
    params = _draw_params(arguments)
    entries = _llm(arguments).next_tokens(arguments.prompt, arguments.number, params)
    output.json_line([entry._asdict() for entry in entries]) if arguments.json else output.probabilities(entries)


def step(arguments: argparse.Namespace) -> None:
    """Watch a draw: each token's chance in the model, after the temperature, after the filters, and what won."""
    params = (_draw_params(arguments) or SamplingParams()).replace(max_tokens=1, ignore_eos=True)
    llm = _llm(arguments)
    found = llm.draw(arguments.prompt, params, arguments.number)
    won = llm.generate([arguments.prompt], params)[0].outputs[0].token_ids[0]
    texts = [llm.engine.text_of(token_id) or "" for token_id in [won, *(each.token_id for each in found.candidates)]]
    if arguments.json:
        rows = [{"text": text, **each._asdict()} for text, each in zip(texts[1:], found.candidates, strict=True)]
        output.json_line({"won": {"token_id": won, "text": texts[0]}, "num_kept": found.num_kept, "candidates": rows})
    else:
        tables.draw(found, texts, won)


def beam(arguments: argparse.Namespace) -> None:
    """Search for the likeliest texts as a whole."""
    found = _llm(arguments).beam_search(
        arguments.prompt, arguments.beams, arguments.max_tokens, arguments.length_penalty
    )[0]
    output.json_line([vars(each) for each in found]) if arguments.json else tables.beams(found)


def score(arguments: argparse.Namespace) -> None:
    """Compute negative log-likelihood and perplexity of a file."""
    try:
        text = sys.stdin.read() if arguments.file == "-" else Path(arguments.file).read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise ValueError(f"{arguments.file}: not UTF-8 text") from None
    result = _llm(arguments).score(text)
    if arguments.json:
        output.json_line(result._asdict())
    else:
        print(f"nll {result.nll:.6f} nats/token   perplexity {result.perplexity:.4f}   tokens {result.num_tokens}")


def models(arguments: argparse.Namespace) -> None:
    """List the names that `--model` knows."""
    output.json_line(output.model_rows()) if arguments.json else output.models()


def tokens(arguments: argparse.Namespace) -> None:
    """Show how a text splits into tokens."""
    from octavo.gpt.loading.loader import load_tokenizer

    tokenizer = load_tokenizer(arguments.model)
    ids = tokenizer.encode(arguments.text)
    pieces = [(token_id, tokenizer.decode([token_id], continues=True)) for token_id in ids]
    if arguments.json:
        output.json_line([{"token_id": token_id, "text": text} for token_id, text in pieces])
    else:
        output.tokens(pieces)


def _llm(arguments: argparse.Namespace) -> "LLM":
    return octavo.gpt.LLM(
        arguments.model,
        backend=arguments.backend,
        dtype=arguments.dtype,
        weights=arguments.weights,
        device=arguments.device,
        max_model_len=arguments.max_model_len,
        adapter=arguments.adapter,
        speculative=arguments.speculative,
        parse_special=getattr(arguments, "parse_special", False),
        generation_config=getattr(arguments, "generation_config", "octavo"),
        seed=int.from_bytes(os.urandom(7), "little"),
    )


def _params(arguments: argparse.Namespace, llm: "LLM | None" = None) -> SamplingParams:
    """Return what was asked for; with a model, after what its generation_config.json says, which a line tells."""
    given = {name: value for name in SAMPLING_OPTIONS if (value := getattr(arguments, name)) is not None}
    if arguments.logit_bias:
        given["logit_bias"] = dict(map(_bias, arguments.logit_bias))
    followed = {name: value for name, value in (llm.sampling_defaults if llm else {}).items() if name not in given}
    if followed:
        said = ", ".join(f"{name} {value}" for name, value in followed.items())
        complain("octavo", f"as the model's generation_config.json says: {said} (--generation-config octavo: not so)")
    return SamplingParams(**DEFAULTS | followed | given | forms.structured(arguments))


def _draw_params(arguments: argparse.Namespace) -> SamplingParams | None:
    """Return what was asked of the draw of one token; None for nothing."""
    given = {name: value for name in DRAW_OPTIONS if (value := getattr(arguments, name, None)) is not None}
    return SamplingParams(**given) if given else None


def _bias(text: str) -> tuple[int, float]:
    token_id, _, bias = text.partition("=")
    try:
        return int(token_id), float(bias)
    except ValueError:
        raise ValueError(f"logit_bias must be ID=NUMBER, not {quoted(text)}") from None


def _parser() -> Parser:
    parser = Parser(prog="octavo", description="Fast, exact GPT decoding.", epilog=_example("chat"))
    parser.add_argument("--version", action="version", version=f"octavo {octavo.gpt.__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for name, function, add_arguments in COMMANDS:
        command = commands.add_parser(
            name, help=function.__doc__, description=function.__doc__, epilog=_example(name),
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )  # fmt: skip
        add_arguments(command)
        command.add_argument("--json", action="store_true", help="one JSON document instead of text")
        command.set_defaults(run=function)
    return parser


def _example(name: str) -> str:
    return f"example:  {EXAMPLES[name]}"


EXAMPLES = {
    "generate": 'octavo generate "Once upon a time" --seed 7 --max-tokens 60',
    "chat": 'octavo chat "What is the capital of Japan?" --temperature 0',
    "next": 'octavo next "I love" --number 5',
    "step": 'octavo step "I love" --temperature 0.7 --top-k 5 --seed 1',
    "beam": 'octavo beam "The capital of Japan is" --beams 3',
    "score": "octavo score README.md",
    "replay": "octavo replay receipts.jsonl",
    "play": "octavo play",
    "serve": "octavo serve --model smollm2 --port 8000",
    "models": "octavo models",
    "tokens": 'octavo tokens "Hello, world 123"',
}


def _model_arguments(command: argparse.ArgumentParser) -> None:
    parser = command.add_argument_group("model")
    parser.add_argument("--model", default="smollm2", help="a name, a Hugging Face folder or a GGUF file (smollm2)")
    for name, choices, what in MODEL_OPTIONS:
        known = "auto", *choices
        shown = f"{what}{', '.join(known)}{OPEN.get(name, '')} (auto)"
        limited = None if name in OPEN else known
        parser.add_argument(f"--{name}", default="auto", choices=limited, metavar="NAME", help=shown)
    parser.add_argument("--adapter", metavar="NAME", help="a LoRA adapter in PEFT's format: a folder or owner/name")
    parser.add_argument("--speculative", metavar="WHO", help="who guesses ahead: ngram or a draft model; :4 for 4")
    parser.add_argument("--max-model-len", type=int, metavar="N", help="most tokens a step sees (the model's context)")


def _sampling_arguments(command: argparse.ArgumentParser) -> None:
    parser = command.add_argument_group("sampling")
    _sampling_options(parser, SAMPLING_OPTIONS)
    parser.add_argument(
        "--generation-config", default="auto", metavar="NAME",
        help="whose defaults: auto (the model's generation_config.json), octavo (those shown here) or a folder (auto)",
    )  # fmt: skip
    parser.add_argument(
        "--logit-bias", action="append", metavar="ID=X", help="add X to the logit of this id; repeatable"
    )
    forms.add_arguments(command)
    parser = command.add_argument_group("output")
    parser.add_argument(
        "--raw", action="store_true", help="show control characters of the text to the terminal as well"
    )
    parser.add_argument("--stats", action="store_true", help="close with times and the most likely first tokens")
    _model_arguments(command)


def _sampling_options(parser: Any, names: Iterable[str]) -> None:
    types = get_type_hints(SamplingParams)
    for name in names:
        parser.add_argument("--" + name.replace("_", "-"), **_option(name, types[name], SAMPLING_OPTIONS[name]))


def _option(name: str, hint: Any, option: Field) -> dict[str, Any]:
    """Return how argparse reads an option that is a field of SamplingParams; None where it is not given."""
    text, default = option.metadata["help"], DEFAULTS.get(name, option.default)
    if hint is bool:
        return {"action": "store_true", "default": None, "help": text}
    if name in ("stop", "bad_words"):
        return {"action": "append", "metavar": "TEXT", "help": text}
    if name == "stop_token_ids":
        return {"type": int, "nargs": "+", "metavar": "ID", "help": text}
    kind = next(kind for kind in METAVARS if kind is hint or kind in get_args(hint))
    shown = text if default is None else f"{text} ({default:g})" if kind is not str else f"{text} ({default})"
    return {"type": kind, "metavar": METAVARS[kind], "help": shown}


def _generate_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("prompt")
    parser.add_argument("--parse-special", action="store_true", help="read control tokens in the prompt as such")
    parser.add_argument("--receipt", metavar="FILE", help="add a receipt to FILE, which `octavo replay` checks")
    _sampling_arguments(parser)


def _chat_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("question", nargs="?", help="ask this and leave; without it, a conversation")
    parser.add_argument("--system", help="what the assistant is told first")
    _sampling_arguments(parser)


def _next_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("prompt")
    parser.add_argument("-n", "--number", type=int, default=10, help="how many (10)")
    _sampling_options(parser.add_argument_group("sampling"), DRAW_OPTIONS[:-1])
    _model_arguments(parser)


def _step_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("prompt")
    parser.add_argument("-n", "--number", type=int, default=10, help="how many candidates (10)")
    _sampling_options(parser.add_argument_group("sampling"), DRAW_OPTIONS)
    _model_arguments(parser)


def _beam_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("prompt")
    parser.add_argument("--beams", type=int, default=4, metavar="N", help="texts that are followed at once (4)")
    parser.add_argument("--max-tokens", type=int, default=16, metavar="N", help="most tokens of each (16)")
    parser.add_argument("--length-penalty", type=float, default=1.0, metavar="X", help="above 0 favours long ones (1)")
    _model_arguments(parser)


def _score_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", help="a UTF-8 text file, or - for standard input")
    _model_arguments(parser)


def _serve_arguments(parser: argparse.ArgumentParser) -> None:
    serve.add_arguments(parser)
    _model_arguments(parser)


def _play_arguments(parser: argparse.ArgumentParser) -> None:
    play.add_arguments(parser)
    _model_arguments(parser)


def _tokens_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("text")
    parser.add_argument("--model", default="smollm2", help="whose tokenizer (smollm2)")


COMMANDS: tuple[
    tuple[str, Callable[[argparse.Namespace], int | None], Callable[[argparse.ArgumentParser], None]], ...
] = (
    ("generate", generate, _generate_arguments),
    ("chat", chat, _chat_arguments),
    ("next", next_tokens, _next_arguments),
    ("step", step, _step_arguments),
    ("beam", beam, _beam_arguments),
    ("score", score, _score_arguments),
    ("replay", replay.replay, replay.add_arguments),
    ("serve", serve.serve, _serve_arguments),
    ("play", play.play, _play_arguments),
    ("models", models, lambda parser: None),
    ("tokens", tokens, _tokens_arguments),
)

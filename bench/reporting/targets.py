"""The speeds that are wanted on a CPU, as multiples of a peer's, beside those of a run of `decode`."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from octavo.bench.reporting.figures import number, times
from octavo.bench.reporting.schema import Decode

OURS = "octavo:cpu"
DECODE, PREFILL, BANDWIDTH = "decode_tokens_per_s", "prefill_tokens_per_s", "bandwidth_share"
NAMES = {DECODE: "decode tok/s", PREFILL: "prefill tok/s", BANDWIDTH: "share of bandwidth"}


class Place(NamedTuple):
    batch: int
    context: int
    figure: str


SHORT, LONG, BATCH, PROMPT = PLACES = (
    Place(1, 128, DECODE), Place(1, 1024, DECODE), Place(8, 128, DECODE), Place(1, 512, PREFILL),
)  # fmt: skip
# (model, format of weights) -> times llama.cpp in the same format, at each of PLACES
LLAMACPP = {
    ("smollm2", "float32"): (1.35, 1.3, 1.8, 1.5),
    ("smollm2", "bfloat16"): (1.25, 1.35, 2.1, 1.5),
    ("smollm2", "q8_0"): (1.5, 1.7, 2.7, 2.3),
    ("smollm2", "q4_0"): (2.0, 1.6, 2.3, 2.3),
    ("smollm2", "file"): (2.5, 2.0, 4.0, 4.0),
    ("smollm2", "q4_k_m"): (1.2, 1.1, 1.8, 1.5),
    ("smollm2", "q6_k"): (1.2, 1.1, 1.8, 1.5),
    ("dummy:gpt2", "float32"): (1.05, 1.0, 1.5, 1.3),
    ("dummy:gpt2", "bfloat16"): (1.05, 1.0, 1.7, 1.6),
    ("dummy:gpt2", "q8_0"): (1.35, 1.1, 2.2, 2.5),
    ("dummy:gpt2", "q4_0"): (1.8, 1.2, 2.2, 2.5),
    ("dummy:llama-3.2-1b", "bfloat16"): (1.1, 1.1, 2.0, 1.1),
    ("dummy:llama-3.2-1b", "q8_0"): (1.05, 1.1, 2.2, 1.8),
    ("dummy:llama-3.2-1b", "q4_0"): (1.1, 1.1, 2.4, 1.7),
}


class Target(NamedTuple):
    """At least so much of a figure at a place, as a multiple of a peer's there; without a peer, of the figure alone."""

    model: str
    dtype: str
    place: Place
    peer: str
    least: float


class Score(NamedTuple):
    """A target beside what was measured; None where a side of it was not."""

    target: Target
    ours: float | None
    theirs: float | None

    @property
    def value(self) -> float | None:
        if self.ours is None or not self.target.peer:
            return self.ours
        return None if self.theirs is None else self.ours / self.theirs

    @property
    def word(self) -> str:
        if self.value is None:
            return "not measured"
        return "yes" if self.value >= self.target.least else "no"

    def row(self) -> list[str]:
        model, dtype, place, peer, least = self.target
        return [
            f"{model} {dtype}", f"{place.batch} x {place.context}", NAMES[place.figure], number(self.ours),
            peer or "-", number(self.theirs), times(self.value, 1.0), f"{least:.2f}", self.word,
        ]  # fmt: skip


HEADER = ("weights", "batch x context", "figure", "ours", "beside", "theirs", "ratio", "wanted", "reached")


def scores(records: Sequence[Decode]) -> list[Score]:
    """Every target of the models that a run has lines of."""
    models = {record.model for record in records}
    return [_score(target, records) for target in _targets() if target.model in models]


def _targets() -> Iterator[Target]:
    for (model, dtype), ratios in LLAMACPP.items():
        for place, ratio in zip(PLACES, ratios, strict=True):
            yield Target(model, dtype, place, "llama.cpp", ratio)
    for model in dict.fromkeys(model for model, _ in LLAMACPP):
        for dtype in ("float32", "bfloat16"):
            yield from (Target(model, dtype, place, "transformers", least) for place, least in ((SHORT, 3), (BATCH, 5)))
        for dtype, share in (("float32", 0.85), ("bfloat16", 0.75), ("q8_0", 0.75)):
            yield Target(model, dtype, Place(1, 128, BANDWIDTH), "", share)
    for place, least in ((SHORT, 3), (BATCH, 1.5), (PROMPT, 1)):
        yield Target("smollm2", "file", place, "openvino", least)


def _score(target: Target, records: Sequence[Decode]) -> Score:
    peer = _figure(target, target.peer, records) if target.peer else None
    return Score(target, _figure(target, OURS, records), peer)


def _figure(target: Target, contender: str, records: Sequence[Decode]) -> float | None:
    """The contender's, or that of its variant for this format, where the check passed."""
    model, dtype, place, *_ = target
    names = contender, f"{contender}:{dtype}"
    wanted = model, dtype, place.batch, place.context
    for record in records:
        here = record.model, record.dtype, record.batch, record.context
        if record.passed and here == wanted and record.contender in names:
            value: float | None = getattr(record, place.figure)
            return value
    return None

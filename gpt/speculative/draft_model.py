"""DraftModel: a smaller model of the same tokenizer says what comes next.

It draws with the request's own seed, temperature and filters, so it guesses right wherever both models have the same
logits. Penalties, biases and masks are not applied to it. It has a cache of its own, with as many blocks.
"""

from collections.abc import Sequence as Seq
from dataclasses import dataclass, replace
from itertools import takewhile
from typing import TYPE_CHECKING

from octavo.gpt.options.checks import integer
from octavo.gpt.quoting import quoted
from octavo.gpt.sampling_params import SamplingParams
from octavo.gpt.scheduler.block_pool import BlockPool
from octavo.gpt.scheduler.config import EngineConfig
from octavo.gpt.scheduler.scheduler import Chunk, Plan
from octavo.gpt.scheduler.sequence import Sequence

if TYPE_CHECKING:  # what a caller imports to choose needs no PyTorch
    import torch

    from octavo.gpt.models.base import Model
    from octavo.gpt.runner.decode_graph import Capture
    from octavo.gpt.speculative.proposer import Target
    from octavo.gpt.tokenizer.tokenizer import Tokenizer

MOST_TOKENS = 16
SAMPLE = "Hello, wörld! 1234 + 5\n\tdef f(x): return x  # 你好"


@dataclass(frozen=True)
class DraftModel:
    """Speculate with another model: `LLM(speculative=DraftModel("folder", num_tokens=3))`.

    model: a name, a folder or a GGUF file, as `LLM` takes them. num_tokens: guessed at a time, 1 to 16. dtype and
    weights are those of `LLM`.
    """

    model: str
    num_tokens: int = 3
    dtype: str = "auto"
    weights: str = "auto"

    def __post_init__(self) -> None:
        object.__setattr__(self, "num_tokens", integer("num_tokens", self.num_tokens, 1, MOST_TOKENS))

    def proposer(self, target: "Target") -> "DraftProposer":
        """ValueError where the model reads texts as other tokens than the target's."""
        from octavo.gpt.loading.loader import load_model

        device = target.device
        loaded = load_model(self.model, target.loaded.model.ops, self.dtype, device.type, self.weights)
        if _reads(loaded.tokenizer) != _reads(target.loaded.tokenizer):
            raise ValueError(
                f"speculative: {quoted(self.model)} has another tokenizer than {quoted(target.loaded.name)}"
            )
        return DraftProposer(loaded.model, target.config, device, loaded.dtype, self.num_tokens, target.capture)


def _reads(tokenizer: "Tokenizer | None") -> list[int] | None:
    """What a text becomes, by which two tokenizers are told apart."""
    return None if tokenizer is None else [tokenizer.vocab_size, *tokenizer.encode(SAMPLE)]


class DraftProposer:
    """Runs the draft on a twin of each sequence, which has the same text, a block table of its own, and the guesses."""

    def __init__(
        self,
        model: "Model",
        config: EngineConfig,
        device: "torch.device",
        dtype: "torch.dtype",
        num_tokens: int,
        capture: "Capture | None" = None,
    ) -> None:
        from octavo.gpt.runner.kv_cache import PagedCache
        from octavo.gpt.runner.model_runner import Runner

        self.num_tokens = num_tokens
        longest = min(config.max_model_len, model.config.longest_context)
        self.config = replace(config, max_model_len=longest, sliding_window=0)
        cache = PagedCache(model.config, config.num_blocks, config.block_size, dtype, device)
        self.runner = Runner(model, cache, self.config, device, capture, config.max_num_seqs * (num_tokens + 1))
        self.reset()

    def propose(self, sequences: Seq[Sequence], limits: Seq[int]) -> list[list[int]]:
        asked = [(self._twin(s), limit) for s, limit in zip(sequences, limits, strict=True)]
        able = {twin.seq_id: limit for twin, limit in asked if self._make_room(twin, limit)}
        twins = [twin for twin, _ in asked if twin.seq_id in able]
        for twin, sequence in zip((twin for twin, _ in asked), sequences, strict=True):
            if twin.seq_id in able:
                self._catch_up(twin, sequence)
        guesses: dict[int, list[int]] = {sequence.seq_id: [] for sequence in sequences}
        while twins := [twin for twin in twins if len(guesses[twin.seq_id]) < able[twin.seq_id]]:
            for twin, token_id in zip(twins, self.runner.sample_last(twins), strict=True):
                twin.num_computed += 1 + len(twin.guess)
                twin.output += [*twin.guess, max(token_id, 0)]
                twin.guess = []
                guesses[twin.seq_id].append(max(token_id, 0))
        return [guesses[sequence.seq_id] for sequence in sequences]

    def free(self, seq_id: int) -> None:
        twin = self._twins.pop(seq_id, None)
        if twin is not None:
            self._pool.release(twin.block_table)

    def reset(self) -> None:
        self._twins: dict[int, Sequence] = {}
        self._pool = BlockPool(self.config.num_blocks)
        self.runner.reset()

    def _twin(self, sequence: Sequence) -> Sequence:
        """The sequence's twin, which counts as computed what it was right about."""
        twin = self._twins.get(sequence.seq_id)
        if twin is None:
            given = sequence.params
            params = SamplingParams(
                temperature=given.temperature, top_k=given.top_k, top_p=given.top_p, min_p=given.min_p, max_tokens=None
            )
            twin = Sequence(sequence.seq_id, sequence.prompt, params, sequence.seed, max_len=2**31)
            self._twins[sequence.seq_id] = twin
        pairs = zip(twin.output, sequence.output, strict=False)
        right = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
        right = min(right, len(sequence.output) - 1)  # the newest token is computed in any case, to go on from
        twin.num_computed = min(twin.num_computed, len(twin.prompt) + right)
        twin.output = list(sequence.output)
        return twin

    def _make_room(self, twin: Sequence, limit: int) -> bool:
        """Whether the draft's context and its blocks hold the text and a guess."""
        last = len(twin.prompt) + len(twin.output) + limit
        missing = -(-last // self.config.block_size) - len(twin.block_table)
        if last > self.config.max_model_len or missing > self._pool.num_available:
            return False
        twin.block_table += [self._pool.allocate() for _ in range(missing)]
        return True

    def _catch_up(self, twin: Sequence, sequence: Sequence) -> None:
        """Compute all but the last few tokens as prefill; those go with the next step, as if they were a guess."""
        known = len(twin.prompt) + len(twin.output)
        if twin.num_computed < len(twin.prompt) - 1 or known - twin.num_computed > self.num_tokens + 1:
            twin.num_prefill = known  # of which the last token is left: nothing is sampled
            while twin.num_computed < known - 1:
                end = min(twin.num_computed + self.config.max_num_batched_tokens, known - 1)
                self.runner.launch(Plan(prefill=[Chunk(twin, twin.num_computed, end)]))
                twin.num_computed = end
        newest = twin.num_computed + 1 - len(twin.prompt)
        twin.output, twin.guess = twin.output[:newest], twin.output[newest:]

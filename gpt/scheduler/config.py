"""EngineConfig: memory and batching limits of one engine, checked."""

from dataclasses import dataclass, fields

from octavo.gpt.sampling_params import RAW, check_logprobs_mode

PREEMPTIONS = ("auto", "swap", "recompute")


@dataclass(frozen=True)
class EngineConfig:
    """Memory and batching limits of one engine; ValueError naming the field that makes no sense."""

    max_model_len: int  # tokens of one request, prompt and output together
    block_size: int = 16  # tokens in one cache block
    num_blocks: int = 1024
    max_num_seqs: int = 64  # completions that run together
    max_num_batched_tokens: int = 2048  # prompt tokens in one forward step
    max_num_waiting: int = 4096  # completions in the queue
    preemption: str = "auto"  # "swap": keys and values go to host memory and back; "recompute": prefill computes them
    recompute_cost: int = 128  # tokens that go to host memory and back in the time that prefill computes one
    logprobs_mode: str = RAW  # what a reported log-probability is, where a request does not say
    sliding_window: int = 0  # tokens that the widest layer sees: blocks before them are given back; 0: all are kept

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            least = int(field.name != "sliding_window")
            if field.type is int and (type(value) is not int or value < least):
                raise ValueError(f"{field.name} must be a positive integer{'' if least else ' or 0'}, not {value!r}")
        check_logprobs_mode(self.logprobs_mode)
        if self.preemption not in PREEMPTIONS:
            raise ValueError(f"preemption must be one of {', '.join(PREEMPTIONS)}, not {self.preemption!r}")
        if self.block_size & (self.block_size - 1) or self.block_size > 256:
            raise ValueError(f"block_size must be a power of two up to 256, not {self.block_size}")

    @property
    def max_blocks_per_seq(self) -> int:
        """The most blocks that one sequence holds at a time: those of a window and of the chunk after it, if they are
        fewer than those of `max_model_len` tokens."""
        whole = -(-self.max_model_len // self.block_size)
        if not self.sliding_window:
            return whole
        seen = self.sliding_window - 1 + self.max_num_batched_tokens  # of a chunk: they may begin within a block
        return min(whole, -(-seen // self.block_size) + 1)

"""EngineConfig: memory and batching limits of one engine, checked."""

from dataclasses import dataclass, fields

PREEMPTIONS = ("swap", "recompute")


@dataclass(frozen=True)
class EngineConfig:
    """Memory and batching limits of one engine; ValueError naming the field that makes no sense."""

    max_model_len: int  # tokens of one request, prompt and output together
    block_size: int = 16  # tokens in one cache block
    num_blocks: int = 1024
    max_num_seqs: int = 64  # completions that run together
    max_num_batched_tokens: int = 2048  # prompt tokens in one forward step
    max_num_waiting: int = 4096  # completions in the queue
    preemption: str = "swap"  # keys and values go to host memory and back; "recompute": prefill computes them again

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name != "preemption" and (type(value) is not int or value < 1):
                raise ValueError(f"{field.name} must be a positive integer, not {value!r}")
        if self.preemption not in PREEMPTIONS:
            raise ValueError(f"preemption must be one of {', '.join(PREEMPTIONS)}, not {self.preemption!r}")
        if self.block_size & (self.block_size - 1) or self.block_size > 256:
            raise ValueError(f"block_size must be a power of two up to 256, not {self.block_size}")

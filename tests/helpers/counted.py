"""How many examples the suites ran that do not say so themselves: conftest.py reports them at the end."""

from collections import Counter

ran: Counter[str] = Counter()


def count(suite: str, examples: int = 1) -> None:
    ran[suite] += examples

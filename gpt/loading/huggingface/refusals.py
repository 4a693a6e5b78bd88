"""What huggingface_hub raises -> one line that names the repository and says what to do."""

import errno
import os
from collections.abc import Iterator

from huggingface_hub import constants, errors

from octavo.gpt.loading.huggingface.name import HubName
from octavo.gpt.quoting import one_line

TOKEN = "set HF_TOKEN to a token of an account that may read it, or log in by `hf auth login`"
WRONG_TOKEN = "Invalid credentials"
NOT_THERE = f"is not there or is private, and no file or folder here has that name: check the name, or {TOKEN}"
REASONS: tuple[tuple[type[Exception], str], ...] = (
    (errors.GatedRepoError, f"is gated: accept its terms on its page of the hub, then {TOKEN}"),
    (errors.RevisionNotFoundError, "has no revision {revision}"),
    (errors.RepositoryNotFoundError, NOT_THERE),
    (errors.EntryNotFoundError, "lacks a file that it lists"),
    (errors.HFValidationError, "is no name that the hub allows"),
)
NOT_STORED = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS, errno.ENOTDIR)


def refusal(name: HubName, error: Exception) -> ValueError:
    """The error to raise instead."""
    return ValueError(f"{one_line(str(name), 120)} of the Hugging Face hub {_reason(name, error)}")


def state(error: Exception) -> str:
    """Why the hub gives no answer, in a few words."""
    chain, host = list(_chain(error)), os.environ.get("HF_ENDPOINT") or constants.ENDPOINT
    if any(isinstance(each, errors.OfflineModeIsEnabled) for each in chain):
        return "HF_HUB_OFFLINE is set"
    if (status := _status(chain)) in (401, 403):
        return f"{host} refuses the token of HF_TOKEN or `hf auth login` (status {status})"
    if status is not None:
        return f"{host} answers with status {status}"
    if any("timeout" in type(each).__name__.lower() for each in chain):
        return f"{host} does not answer in time"
    last = next((str(each) for each in reversed(chain) if str(each).strip()), type(error).__name__)
    return f"{host} cannot be reached ({one_line(last, 120)})"


def _reason(name: HubName, error: Exception) -> str:
    """What the first kind of error says that is among the causes."""
    chain = list(_chain(error))
    for kind, reason in REASONS:
        if any(isinstance(each, kind) for each in chain):
            return reason.format(revision=one_line(name.revision or constants.DEFAULT_REVISION, 80))
    if _status(chain) == 401 and not any(WRONG_TOKEN in str(each) for each in chain):
        return NOT_THERE  # the hub says so to those who give no token
    cache = one_line(str(constants.HF_HUB_CACHE), 300)
    for each in chain:
        if "No space left" in str(each):  # also of the library's parts in Rust, which know no errno
            return f"cannot be stored in {cache}: the disk is full"
        if isinstance(each, OSError) and each.errno in NOT_STORED:
            return f"cannot be stored in {cache}: {os.strerror(each.errno)}"
    return f"is not whole in the cache {cache}, and {state(error)}"


def _status(chain: list[BaseException]) -> int | None:
    """What the hub answered with, where it was heard."""
    codes = (getattr(getattr(each, "response", None), "status_code", None) for each in chain)
    return next((code for code in codes if code is not None), None)


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """The error and its causes."""
    seen: list[BaseException] = []
    while error is not None and error not in seen:
        seen.append(error)
        yield error
        error = error.__cause__ or error.__context__

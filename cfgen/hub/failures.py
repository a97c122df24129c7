"""What goes wrong between here and the hub, in a sentence each."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator
from pathlib import Path

from cfgen.errors import BudgetError, CfgenError, CheckpointError, SetupError, UsageError
from cfgen.hub.reference import MAIN, Reference

_PASSING = (408, 429, 500, 502, 503, 504)
_LISTED = "`cfgen models list` lists what is here already"


def transport_errors() -> type[Exception]:
    """The root of what huggingface_hub's HTTP library raises, and of its own HTTP errors.

    That library is httpx in versions before 2 and httpx2 since, so it is asked for here.
    """
    from huggingface_hub.errors import HfHubHTTPError

    return HfHubHTTPError.__bases__[0]


def refusal_of(error: Exception) -> tuple[int, str | None] | None:
    """The HTTP status and the hub's own code of a refusal, or None if the connection failed."""
    from huggingface_hub.errors import HfHubHTTPError

    if not isinstance(error, HfHubHTTPError):
        return None
    return error.response.status_code, error.response.headers.get("X-Error-Code")


def may_pass(error: Exception) -> bool:
    """Whether trying again after a transport error may help."""
    refusal = refusal_of(error)
    return refusal is None or refusal[0] in _PASSING


def broken_off(path: str, *, nbytes: int, of: int) -> CfgenError:
    """The error for a download that stopped in the middle."""
    return CfgenError(
        f"the connection broke after {nbytes} of {of} bytes of {path}",
        "run the same command again: it goes on from there",
    )


@contextlib.contextmanager
def hub_errors(reference: Reference, endpoint: str) -> Iterator[None]:
    """Turn what talking to the hub raises into an error that says what to do.

    Raises:
        CheckpointError: The hub does not have it, or does not give it.
        SetupError: The hub cannot be reached, is out of order, or is no hub.
        UsageError: There can be no repository of that name.
    """
    from huggingface_hub.errors import HFValidationError

    try:
        yield
    except transport_errors() as error:
        refusal = refusal_of(error)
        if refusal is None:
            raise SetupError(
                f"{endpoint} cannot be reached: {error or type(error).__name__}",
                f"check the network and HF_ENDPOINT; {_LISTED}",
            ) from error
        raise _refused(reference, endpoint, *refusal) from error
    except HFValidationError as error:
        raise UsageError(f"there can be no repository {reference.repo!r}: {error}") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise SetupError(
            f"{endpoint} does not answer as a Hugging Face hub does: {error}",
            "check HF_ENDPOINT, and whether a proxy or a login page answers instead",
        ) from error


@contextlib.contextmanager
def disk_errors(folder: Path) -> Iterator[None]:
    """Turn an OSError of the block into an error that names the folder.

    Raises:
        BudgetError: The disk is full.
        SetupError: Anything else.
    """
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise BudgetError(
                f"the disk is full: could not go on writing into {folder}",
                "free some space and run the same command again: it goes on from there",
            ) from error
        raise SetupError(
            f"could not write {error.filename or folder}: {error.strerror or error}",
            "check the permissions, or set HF_HOME to a folder of your own",
        ) from error


def _refused(reference: Reference, endpoint: str, status: int, code: str | None) -> CfgenError:
    repo = reference.repo
    if code == "GatedRepo":
        return CheckpointError(
            f"{repo} is gated: its owners give it only to accounts that asked for it",
            f"ask for it at {endpoint}/{repo}, then set HF_TOKEN to a token of that account",
        )
    if code == "RevisionNotFound":
        return CheckpointError(
            f"{repo} has no revision {reference.revision or MAIN!r}",
            f"its branches and tags are shown at {endpoint}/{repo}/tree/main",
        )
    if status in (401, 403):
        return CheckpointError(
            f"the hub refuses {repo} ({status}): it is private, or there is none of that name",
            "check the name; for a private one set HF_TOKEN to a token that may read it",
        )
    if status == 404 and code in (None, "RepoNotFound"):
        return CheckpointError(
            f"there is no repository {repo} at {endpoint}", f"check the spelling; {_LISTED}"
        )
    return SetupError(
        f"{endpoint} cannot give {repo} now: it answered {status}{f' ({code})' if code else ''}",
        "wait a while and run the command again",
    )

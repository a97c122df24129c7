"""Fetches the files of a listing into the Hugging Face cache.

huggingface_hub begins a broken download again from the start (since its pull request 4228), and
it takes the content of a file on trust. So the bytes are fetched here, through its session, its
addresses and its credentials: what came of a file stays under ``<digest>.incomplete``, the next
try asks for the rest, and nothing takes its place in the cache before its size and digest are
those that the hub named.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cfgen.errors import CheckpointError, LockHeld
from cfgen.files.writing import append, open_update, require_own_folders, sync_file, write_file
from cfgen.hub.digest import digest_of, is_whole
from cfgen.hub.failures import (
    broken_off,
    disk_errors,
    hub_errors,
    may_pass,
    refusal_of,
    transport_errors,
)
from cfgen.hub.listing import Listing, RemoteFile, get
from cfgen.hub.reference import MAIN, size_of

RETRIES = 5
"""Tries in a row that bring no byte before a download is given up."""

PAUSE_S = 1.0
"""Wait before the first of them; it doubles each time, up to eight times this."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """What happens to a file.

    Attributes:
        what: `check`: its digest is worked out; `damaged`: what the cache holds is not it;
            `fetch`: bytes came; `retry`: the connection broke and is made again; `there`: it is
            whole and in its place.
        file: The file.
        nbytes: Bytes of it that are there now.
    """

    what: Literal["check", "damaged", "fetch", "retry", "there"]
    file: RemoteFile
    nbytes: int


def pull(listing: Listing) -> Iterator[Step]:
    """Bring every file of a listing into the cache and check each against its digest.

    A file that is there and whole is left alone; one that is damaged is fetched again. The branch
    or tag is noted last, so that it never names a commit of which files are still to come.

    Yields:
        What happens, file by file.

    Raises:
        CheckpointError: A file came with other content than the hub names (it is deleted), or the
            hub does not give it.
        SetupError: The hub cannot be reached, or the cache cannot be written.
        CfgenError: The connection broke, and trying again brought nothing.
        BudgetError: The disk is full.
        LockHeld: Another process fetches one of the files.
    """
    with disk_errors(listing.folder):
        for file in listing.files:
            for path in (listing.blob(file), listing.pointer(file)):
                require_own_folders(path, listing.folder)
            listing.blob(file).parent.mkdir(parents=True, exist_ok=True)
            with _only_one(listing, file):
                yield from _settle(listing, file)
            yield Step(what="there", file=file, nbytes=file.nbytes)
        revision = listing.reference.revision or MAIN
        if revision != listing.commit:
            ref = listing.folder / "refs" / revision
            require_own_folders(ref, listing.folder)
            _write_ref(ref, listing.commit)


def _settle(listing: Listing, file: RemoteFile) -> Iterator[Step]:
    """Leave a file that is whole alone; fetch, check and place any other."""
    pointer, blob = listing.pointer(file), listing.blob(file)
    for path in {path.resolve() for path in (pointer, blob) if path.is_file()}:
        yield Step(what="check", file=file, nbytes=file.nbytes)
        if is_whole(path, file.digest, nbytes=file.nbytes):
            if not (pointer.is_file() and path.samefile(pointer)):
                _place(blob, pointer)
            return
        yield Step(what="damaged", file=file, nbytes=0)
    part = listing.part(file)
    yield from _fetch(listing, file, part)
    yield Step(what="check", file=file, nbytes=file.nbytes)
    if not is_whole(part, file.digest, nbytes=file.nbytes):
        came = f"{size_of(part)} bytes with digest {digest_of(part, like=file.digest)}"
        part.unlink()
        raise CheckpointError(
            f"{file.path} of {listing.reference.repo} is not what the hub describes and was "
            f"deleted: {came} came instead of {file.nbytes} with {file.digest}",
            "run the same command again; if that does not help, look for a proxy in between",
        )
    sync_file(part)
    os.replace(part, blob)
    _place(blob, pointer)


def _fetch(listing: Listing, file: RemoteFile, part: Path) -> Iterator[Step]:
    """Let a part grow to the size of its file, over as many connections as it takes."""
    if (size_of(part) or 0) > file.nbytes:
        part.unlink()
    append(part).close()
    failures = 0
    while (before := size_of(part) or 0) < file.nbytes:
        try:
            yield from _stream(listing, file, part)
            if size_of(part) == before:
                raise broken_off(file.path, nbytes=before, of=file.nbytes)
        except transport_errors() as error:
            refusal = refusal_of(error)
            if refusal and refusal[0] == 416:  # the server's file is shorter: its digest will tell
                return
            now = size_of(part) or 0
            failures = 0 if now > before else failures + 1
            if refusal is not None and (failures > RETRIES or not may_pass(error)):
                with hub_errors(listing.reference, listing.hub.endpoint):
                    raise
            if failures > RETRIES:
                raise broken_off(file.path, nbytes=now, of=file.nbytes) from error
            yield Step(what="retry", file=file, nbytes=now)
            time.sleep(PAUSE_S * min(2**failures, 8))


def _stream(listing: Listing, file: RemoteFile, part: Path) -> Iterator[Step]:
    """Write what one connection brings; a server that cannot continue sends all anew.

    What is sent anew is written over what is there and shortens nothing: a connection has brought
    something only if more of the file is kept than before. The digest judges the whole.
    """
    from huggingface_hub import hf_hub_url

    start = size_of(part) or 0
    headers = {"Accept_Encoding": "identity"}  # ranges count the bytes of the file
    url = hf_hub_url(
        listing.reference.repo,
        file.path,
        revision=listing.commit,
        endpoint=listing.hub.endpoint,
    )
    with get(url, **headers | ({"Range": f"bytes={start}-"} if start else {})) as response:
        goes_on = response.status_code == 206
        with append(part) if goes_on else open_update(part) as out:
            for block in response.iter_bytes():
                out.write(block)
                yield Step(what="fetch", file=file, nbytes=out.tell())
                if out.tell() > file.nbytes:
                    return


@contextlib.contextmanager
def _only_one(listing: Listing, file: RemoteFile) -> Iterator[None]:
    """Hold the lock that huggingface_hub, too, takes before it writes a blob."""
    from huggingface_hub.utils import WeakFileLock

    lock = listing.hub.cache / ".locks" / listing.folder.name / f"{file.digest}.lock"
    lock.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as held:
        try:
            held.enter_context(WeakFileLock(lock, timeout=0.1))
        except TimeoutError:
            raise LockHeld(
                f"another process is fetching {file.path} of {listing.reference.repo}",
                f"wait for it and run the command again; if there is none, remove {lock}",
            ) from None
        yield


def _place(blob: Path, pointer: Path) -> None:
    """Let a file of the snapshot be a link to its blob, or the blob itself where links fail."""
    pointer.parent.mkdir(parents=True, exist_ok=True)
    new = pointer.with_name(f".{secrets.token_hex(4)}.part")
    try:
        os.symlink(os.path.relpath(blob, pointer.parent), new)
    except OSError:
        new = blob
    os.replace(new, pointer)


def _write_ref(path: Path, commit: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_file(path, commit.encode("ascii"), shared=True)

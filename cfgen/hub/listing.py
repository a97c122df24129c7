"""What the hub says that a model consists of, and where each file goes in the cache."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote

from cfgen import __version__
from cfgen.errors import BudgetError, CheckpointError, SetupError, UsageError
from cfgen.hub.digest import is_digest
from cfgen.hub.failures import hub_errors
from cfgen.hub.reference import (
    MAIN,
    Reference,
    cache_folder,
    is_inner,
    is_under,
    repo_folder,
    size_of,
)

HUB = "https://huggingface.co"

LISTING_LIMIT = 64 << 20
"""Bytes that a hub's answer may have; a repository of 100,000 files has 30 million."""

_TRUE = ("1", "ON", "YES", "TRUE")


@dataclass(frozen=True, kw_only=True, slots=True)
class Hub:
    """Where models come from and where they go.

    Attributes:
        endpoint: Address of the server.
        cache: The Hugging Face cache.
        offline: Whether the network must not be used.
    """

    endpoint: str
    cache: Path
    offline: bool = False


@dataclass(frozen=True, kw_only=True, slots=True)
class RemoteFile:
    """A file as the hub describes it.

    Attributes:
        path: Where it stands in the repository.
        nbytes: Its size.
        digest: SHA-256 of a large file (64 digits) or the git hash of a small one (40 digits);
            also its name among the blobs of the cache.
    """

    path: str
    nbytes: int
    digest: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Listing:
    """Files of one commit that are to be in the cache.

    Attributes:
        reference: What was asked for.
        hub: Where it comes from and where it goes.
        commit: The commit that the revision means now.
        files: The files that were asked for, sorted by path.
    """

    reference: Reference
    hub: Hub
    commit: str
    files: tuple[RemoteFile, ...]

    @property
    def folder(self) -> Path:
        """The repository's folder in the cache."""
        return repo_folder(self.reference.repo, self.hub.cache)

    @property
    def path(self) -> Path:
        """What the reference means in the cache, once all files are there."""
        return self.folder / "snapshots" / self.commit / (self.reference.file or "")

    def pointer(self, file: RemoteFile) -> Path:
        """Where a file stands in the snapshot; mostly a link to its blob."""
        return self.folder / "snapshots" / self.commit / file.path

    def blob(self, file: RemoteFile) -> Path:
        """Where the content of a file stands."""
        return self.folder / "blobs" / file.digest

    def part(self, file: RemoteFile) -> Path:
        """Where the content of a file grows."""
        return self.folder / "blobs" / f"{file.digest}.incomplete"

    def missing(self, file: RemoteFile) -> int:
        """Bytes of a file that are to be fetched, judged by sizes alone."""
        sizes = (size_of(self.pointer(file)), size_of(self.blob(file)))
        return 0 if file.nbytes in sizes else max(0, file.nbytes - (size_of(self.part(file)) or 0))


def hub_from(environ: Mapping[str, str] = os.environ, *, offline: bool = False) -> Hub:
    """Return the hub and the cache that the environment names, as huggingface_hub reads it.

    Args:
        environ: The environment.
        offline: Whether the network must not be used, whatever the environment says.
    """
    forbidden = environ.get("HF_HUB_OFFLINE") or environ.get("TRANSFORMERS_OFFLINE") or ""
    return Hub(
        endpoint=(environ.get("HF_ENDPOINT") or HUB).rstrip("/"),
        cache=cache_folder(environ),
        offline=offline or forbidden.upper() in _TRUE,
    )


def list_files(
    reference: Reference, hub: Hub, *, include: Sequence[str] = (), exclude: Sequence[str] = ()
) -> Listing:
    """Ask the hub what a reference holds; nothing is fetched.

    Args:
        reference: What to look for.
        hub: Whom to ask.
        include: Patterns such as ``*.safetensors``, of which a path must match one.
        exclude: Patterns of which a path must match none.

    Raises:
        SetupError: The network must not be used, or the hub cannot be reached.
        CheckpointError: The hub does not have it, or does not give it.
        UsageError: The patterns leave no file.
    """
    commit, found = _ask(reference, hub)
    inside = [file for file in found if is_under(file.path, reference.file)]
    if not inside:
        wanted = "" if reference.file is None else f" {reference.file!r}"
        raise CheckpointError(
            f"{reference.repo} has no file{wanted}",
            f"`cfgen models pull --dry-run {reference.repo}` lists its files",
        )
    from huggingface_hub.utils import filter_repo_objects

    chosen = filter_repo_objects(
        inside,
        allow_patterns=list(include) or None,
        ignore_patterns=list(exclude) or None,
        key=lambda file: file.path,
    )
    files = tuple(sorted(chosen, key=lambda file: file.path))
    if not files:
        raise UsageError(
            f"--include and --exclude leave none of the {len(inside)} files of {reference}",
            f"`cfgen models pull --dry-run {reference}` lists them",
        )
    return Listing(reference=reference, hub=hub, commit=commit, files=files)


def check_room(listing: Listing) -> None:
    """Refuse a download that the disk has no room for.

    Raises:
        BudgetError: There is less room than bytes to be fetched.
    """
    cache = listing.hub.cache.absolute()
    there = next(folder for folder in (cache, *cache.parents) if folder.is_dir())
    free, needed = shutil.disk_usage(there).free, sum(map(listing.missing, listing.files))
    if needed > free:
        raise BudgetError(
            f"{listing.reference} needs {needed / 1e9:.2f} GB more in {cache}, "
            f"where {free / 1e9:.2f} GB are free",
            "free some space, choose files with --include, or set HF_HOME to a larger disk",
        )


@contextlib.contextmanager
def get(url: str, **headers: str) -> Iterator[Any]:
    """Ask for a URL as huggingface_hub does: its session, its credentials, its timeout.

    It then sends no more than a request needs: with telemetry on, it asks its hub for a list of
    programs, and tells which of them started it. hf_xet has connections and a cache of its own,
    which can neither be resumed nor checked here.

    Args:
        url: The address.
        headers: More headers, by name with `_` for `-`.
    """
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = os.environ["HF_HUB_DISABLE_XET"] = "1"
    from huggingface_hub import constants
    from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

    constants.HF_HUB_DISABLE_TELEMETRY = constants.HF_HUB_DISABLE_XET = True
    sent = build_hf_headers(library_name="cfgen", library_version=__version__)
    sent |= {name.replace("_", "-"): value for name, value in headers.items()}
    timeout_s = constants.HF_HUB_DOWNLOAD_TIMEOUT
    with get_session().stream("GET", url, headers=sent, timeout=timeout_s) as response:
        hf_raise_for_status(response)
        yield response


def _ask(reference: Reference, hub: Hub) -> tuple[str, list[RemoteFile]]:
    """Return the commit that a reference means, and all files of it."""
    if hub.offline:
        raise SetupError(
            f"{reference} was not fetched: --offline or HF_HUB_OFFLINE forbids the network",
            "leave it out to fetch; what is in the cache renders without the network",
        )
    with hub_errors(reference, hub.endpoint):
        try:
            info = json.loads(_answer(reference, hub))
        except RecursionError:
            raise ValueError("its answer is nested too deeply") from None
        commit = info["sha"]
        if not isinstance(commit, str) or not is_digest(commit):
            raise ValueError(f"{str(commit)[:80]!r} is no commit")
        return commit, [_described(item) for item in info.get("siblings") or ()]


def _answer(reference: Reference, hub: Hub) -> bytes:
    """What the hub tells of a repository: JSON, at most `LISTING_LIMIT` bytes of it.

    Source: huggingface_hub 2.4.0, HfApi.model_info, which would read an answer without an end.
    """
    from huggingface_hub.utils import validate_repo_id

    validate_repo_id(reference.repo)
    revision = quote(reference.revision or MAIN, safe="")
    content = bytearray()
    url = f"{hub.endpoint}/api/models/{reference.repo}/revision/{revision}?blobs=true"
    with get(url) as response:
        for block in response.iter_bytes():
            content += block
            if len(content) > LISTING_LIMIT:
                raise ValueError(f"its answer is larger than {LISTING_LIMIT >> 20} MiB")
    return bytes(content)


def _described(item: Mapping[str, object]) -> RemoteFile:
    """Check what the server says, since it becomes the name of a file here."""
    path, nbytes, large = item["rfilename"], item.get("size"), item.get("lfs")
    digest = large.get("sha256") if isinstance(large, dict) else item.get("blobId")
    if (
        not isinstance(path, str)
        or not is_inner(path)
        or not _encodes(path)
        or type(nbytes) is not int
        or nbytes < 0
        or not isinstance(digest, str)
        or not is_digest(digest)
    ):
        what = f"size {str(nbytes)[:80]} and digest {str(digest)[:80]}"
        raise ValueError(f"it describes {str(path)[:200]!r} with {what}")
    return RemoteFile(path=path, nbytes=nbytes, digest=digest)


def _encodes(path: str) -> bool:
    """Whether a name can be one of a file: half of a surrogate pair cannot, nor can a NUL."""
    try:
        return "\0" not in path and bool(path.encode())
    except UnicodeEncodeError:
        return False

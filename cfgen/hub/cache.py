"""The Hugging Face cache as it lies on the disk: what is there, whether it is whole, what can go.

It is read here and not by huggingface_hub's `scan_cache_dir`, which leaves out a repository as soon
as one link or one branch in it is broken: those are the ones to be told of. Nor does its own
verification do, which asks the hub. It removes files, since it knows which ones revisions share.
"""

from __future__ import annotations

import functools
import os
import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from cfgen.errors import CfgenError, CheckpointError, UsageError
from cfgen.files.reading import WEIGHTS, nbytes_under, open_binary, read_text
from cfgen.hub.digest import is_digest, is_whole
from cfgen.hub.failures import disk_errors
from cfgen.hub.reference import (
    MAIN,
    Reference,
    commit_of,
    commits_of,
    is_under,
    parse_reference,
    repo_folder,
    size_of,
)

if TYPE_CHECKING:
    from huggingface_hub import DeleteCacheStrategy, HFCacheInfo

_MARKS = {
    "generator": rb"patch_embedding\.|general\.architecture.{,16}wan",
    "LoRA": rb"blocks[._]\d+[._](?:self_attn|cross_attn|attn1|attn2|ffn)[._][\w.]*lora",
    "text encoder": rb"SelfAttention\.q|token_embedding\.weight|t5encoder",
    "VAE": rb"(?:encoder|decoder)\.[\w.]*(?:residual\.\d|norm\d|norm_out)\.gamma",
}
"""What only the names in the header of such a file have; of all layouts that carry names."""

_HEAD = 1 << 20

State = Literal["ok", "damaged", "missing", "unknown"]


@dataclass(frozen=True, kw_only=True, slots=True)
class CachedFile:
    """A file of a snapshot.

    Attributes:
        path: Where it stands in the repository.
        place: Where it stands in the snapshot.
        nbytes: Its size, or None if the content is missing.
        digest: What its content must have, or None if it is no link to a blob that tells.
    """

    path: str
    place: Path
    nbytes: int | None
    digest: str | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Snapshot:
    """One commit of a repository in the cache.

    Attributes:
        repo: ``owner/name``.
        commit: The commit.
        refs: The branches and tags that mean it, sorted.
        folder: Where its files stand.
        files: Its files, sorted by path.
    """

    repo: str
    commit: str
    refs: tuple[str, ...]
    folder: Path
    files: tuple[CachedFile, ...]

    @property
    def nbytes(self) -> int:
        """Bytes of its files; content that stands in it twice counts once."""
        return sum({file.place.resolve(): file.nbytes or 0 for file in self.files}.values())

    @property
    def reference(self) -> Reference:
        """The shortest text that means it."""
        if MAIN in self.refs:
            return Reference(self.repo)
        return Reference(self.repo, self.refs[0] if self.refs else self.commit[:7])

    def holds(self) -> tuple[str, ...]:
        """Which parts of a video model its files are, told from the names in their headers."""
        heads = [_head(file.place) for file in self.files if file.path.endswith(WEIGHTS)]
        return tuple(
            part for part, mark in _MARKS.items() if any(re.search(mark, head) for head in heads)
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """What checking a file found.

    Attributes:
        snapshot: The snapshot that it is in.
        file: The file.
        state: `ok`; `damaged`: its content has another digest or cannot be read; `missing`: its
            content is gone; `unknown`: the cache does not tell what its digest should be.
    """

    snapshot: Snapshot
    file: CachedFile
    state: State

    @property
    def repair_command(self) -> str:
        """The command that fetches exactly this file again."""
        snapshot = self.snapshot
        return Reference(snapshot.repo, snapshot.commit, self.file.path).pull_command


@dataclass(frozen=True, kw_only=True, slots=True)
class Removal:
    """What is to go, and how.

    Attributes:
        reference: What was named.
        nbytes: Bytes that this frees.
        paths: What will be gone afterwards.
        strategy: How huggingface_hub does it, or None if the folder goes as it is.
    """

    reference: Reference
    nbytes: int
    paths: tuple[Path, ...]
    strategy: DeleteCacheStrategy | None


def snapshots(cache: Path, repo: str | None = None) -> list[Snapshot]:
    """Return what the cache holds, or what it holds of one repository, sorted by name."""
    folders = [repo_folder(repo, cache)] if repo else sorted(cache.glob("models--*"))
    return [snapshot for folder in folders for snapshot in _snapshots_in(folder, cache)]


def unfinished(cache: Path) -> dict[str, int]:
    """Return the bytes of downloads that were broken off, by repository."""
    found: dict[str, int] = {}
    for part in sorted(cache.glob("models--*/blobs/*.incomplete")):
        repo = _repo_of(part.parent.parent.name)
        found[repo] = found.get(repo, 0) + (size_of(part) or 0)
    return found


def in_cache(text: str, cache: Path) -> Reference:
    """Read what was named: a reference, or a path that lies in the cache.

    Raises:
        UsageError: The text is neither.
        CheckpointError: It is a path on disk, but not one in the cache.
    """
    if not os.path.exists(path := os.path.expanduser(text)):
        reference = parse_reference(text)
        if reference is None:
            raise UsageError(
                f"{text!r} names nothing in the cache; it must be owner/name[@revision][/file]",
                "`cfgen models list` lists what is there",
            )
        return reference
    where, roots = Path(path).absolute(), (cache.absolute(), cache.resolve())
    inside = next((where.relative_to(r).parts for r in roots if where.is_relative_to(r)), ())
    match inside:
        case (folder,) if folder.startswith("models--"):
            return Reference(_repo_of(folder))
        case (folder, "snapshots", commit, *file) if folder.startswith("models--"):
            return Reference(_repo_of(folder), commit, "/".join(file) or None)
    raise CheckpointError(
        f"{text} is no model in the Hugging Face cache {cache}; files elsewhere are your own",
        "`cfgen models list` lists what is there",
    )


def choose(reference: Reference, cache: Path) -> list[Snapshot]:
    """Return the snapshots that a reference means: without a revision, all of the repository.

    With a file in the reference, a snapshot has only that file, or those in that folder.

    Raises:
        CheckpointError: The cache holds nothing of it.
    """
    found = snapshots(cache, reference.repo)
    if reference.revision is not None:
        commit = commit_of(reference, cache)
        found = [snapshot for snapshot in found if snapshot.commit == commit]
    if reference.file is not None:
        found = [_narrowed(snapshot, reference.file) for snapshot in found]
        found = [snapshot for snapshot in found if snapshot.files]
    if not found:
        raise CheckpointError(
            f"{reference} is not in the Hugging Face cache {cache}",
            "`cfgen models list` lists what is there",
        )
    return found


def verify(chosen: Sequence[Snapshot]) -> Iterator[Verdict]:
    """Work out the digest of every file and compare it with the name of its blob.

    Yields:
        A verdict for each file; content that several snapshots share is read once.
    """
    whole = functools.cache(is_whole)
    for snapshot in chosen:
        for file in snapshot.files:
            state: State = "missing" if file.nbytes is None else "unknown"
            if file.nbytes is not None and file.digest is not None:
                state = "ok" if whole(file.place.resolve(), file.digest) else "damaged"
            yield Verdict(snapshot=snapshot, file=file, state=state)


def plan_removal(reference: Reference, cache: Path) -> Removal:
    """Work out what removing a repository, a revision or single files frees; nothing is removed.

    A repository that huggingface_hub cannot read, such as one whose download was broken off, can
    only go as a whole.

    Raises:
        CheckpointError: The cache holds nothing of it, or it can only go as a whole.
    """
    cache = cache.resolve()  # as huggingface_hub names files
    folder, info = repo_folder(reference.repo, cache), _scanned(reference.repo, cache)
    is_whole = reference.revision is None and reference.file is None
    if info is None and folder.is_dir() and is_whole:
        nbytes = nbytes_under(folder)
        return Removal(reference=reference, nbytes=nbytes, paths=(folder,), strategy=None)
    chosen = choose(reference, cache)
    if info is None:
        raise CheckpointError(
            f"{reference.repo} is damaged in the cache, so no part of it can be told apart",
            f"`cfgen models remove {reference.repo}` removes all of it",
        )
    kept = {snapshot.commit: len(snapshot.files) for snapshot in snapshots(cache, reference.repo)}
    if all(len(snapshot.files) == kept[snapshot.commit] for snapshot in chosen):
        reference = replace(reference, file=None)  # an empty snapshot would be left otherwise
    strategy = _strategy(reference, info, chosen)
    parts = unfinished(cache).get(reference.repo, 0) if strategy.repos else 0
    paths = [snapshot.folder for snapshot in chosen]
    if reference.file is not None:
        paths = [file.place for snapshot in chosen for file in snapshot.files]
    nbytes = int(strategy.expected_freed_size) + parts
    return Removal(reference=reference, nbytes=nbytes, paths=tuple(paths), strategy=strategy)


def remove(removal: Removal) -> None:
    """Remove what was planned.

    Raises:
        CfgenError: Something is still there.
        SetupError: The disk refused.
    """
    with disk_errors(removal.paths[0]):
        if removal.strategy is None:
            shutil.rmtree(removal.paths[0])
        else:
            removal.strategy.execute()
    if left := [path for path in removal.paths if os.path.lexists(path)]:
        raise CfgenError(f"{left[0]} could not be removed", "check who owns it, and try again")


def _snapshots_in(folder: Path, cache: Path) -> Iterator[Snapshot]:
    repo = _repo_of(folder.name)
    for commit in commits_of(repo, cache):
        place = folder / "snapshots" / commit
        files = (path for path in sorted(place.rglob("*")) if path.is_symlink() or path.is_file())
        yield Snapshot(
            repo=repo,
            commit=commit,
            refs=tuple(_refs_of(folder / "refs", commit)),
            folder=place,
            files=tuple(_file(path, place) for path in files),
        )


def _file(place: Path, snapshot: Path) -> CachedFile:
    # The first link names the blob; a blob may be a link itself, into a store of all repositories.
    name = Path(os.readlink(place)).name if place.is_symlink() else ""
    return CachedFile(
        path=place.relative_to(snapshot).as_posix(),
        place=place,
        nbytes=size_of(place),
        digest=name if is_digest(name) else None,
    )


def _refs_of(folder: Path, commit: str) -> Iterator[str]:
    for path in sorted(folder.rglob("*")):
        if path.is_file() and read_text(path, encoding="ascii", errors="replace").strip() == commit:
            yield path.relative_to(folder).as_posix()


def _repo_of(folder: str) -> str:
    return folder.removeprefix("models--").replace("--", "/")


def _narrowed(snapshot: Snapshot, file: str) -> Snapshot:
    return replace(snapshot, files=tuple(f for f in snapshot.files if is_under(f.path, file)))


def _head(path: Path) -> bytes:
    try:
        with open_binary(path) as file:
            return file.read(_HEAD)
    except OSError:
        return b""


def _scanned(repo: str, cache: Path) -> HFCacheInfo | None:
    """What huggingface_hub finds of this one repository; a fork has commits of the same name."""
    from huggingface_hub import scan_cache_dir

    if not cache.is_dir():
        return None
    info = scan_cache_dir(cache)
    found = [it for it in info.repos if (it.repo_type, it.repo_id) == ("model", repo)]
    return replace(info, repos=frozenset(found)) if found else None


def _strategy(
    reference: Reference, info: HFCacheInfo, chosen: Sequence[Snapshot]
) -> DeleteCacheStrategy:
    if reference.file is None:
        return info.delete_revisions(*(snapshot.commit for snapshot in chosen))
    places = {file.place for snapshot in chosen for file in snapshot.files}
    known = (file for repo in info.repos for each in repo.revisions for file in each.files)
    return info.delete_files(*(file for file in known if file.file_path in places))

"""Frees the Hugging Face cache of a model, through huggingface_hub, which knows what is shared."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from cfgen.errors import CfgenError, CheckpointError
from cfgen.hub.cache import Snapshot, choose, snapshots, unfinished
from cfgen.hub.failures import disk_errors
from cfgen.hub.reference import Reference, repo_folder

if TYPE_CHECKING:
    from huggingface_hub import DeleteCacheStrategy, HFCacheInfo


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
        nbytes = _bytes_under(folder)
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
    return Removal(
        reference=reference,
        nbytes=int(strategy.expected_freed_size) + parts,
        paths=tuple(paths),
        strategy=strategy,
    )


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


def _bytes_under(folder: Path) -> int:
    paths = (Path(place) / name for place, _, names in os.walk(folder) for name in names)
    return sum(path.lstat().st_size for path in paths)

"""What a model may be called, and where it lies: on disk, or in the Hugging Face cache."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import quote, unquote

from cfgen.errors import CheckpointError, SetupError
from cfgen.files.reading import WEIGHTS, read_text

MAIN = "main"
"""The revision that is meant when none is named."""

_NAME = r"\w(?:[\w.-]{0,94}\w)?"
_HUB_REFS = re.compile(r"refs/(?:pr|convert)/[^/@]+")
_GRAMMAR = re.compile(
    rf"(?P<repo>{_NAME}/{_NAME})"
    rf"(?:@(?P<revision>{_HUB_REFS.pattern}|[^/@]+))?"
    r"(?:/(?P<file>.+))?",
    re.ASCII,
)
_SHORTEST_COMMIT = 7


@dataclass(frozen=True, slots=True)
class Reference:
    """A repository on the hub, or one file or folder in it.

    Attributes:
        repo: ``owner/name``.
        revision: Branch, tag or commit (may be cut to 7 digits), or None if none was named.
        file: Path of a file or a folder inside the repository, or None for all of it.
    """

    repo: str
    revision: str | None = None
    file: str | None = None

    def __str__(self) -> str:
        """Return the text that `parse_reference` reads."""
        at = "" if self.revision is None else f"@{_written(self.revision)}"
        return self.repo + at + ("" if self.file is None else f"/{self.file}")

    @property
    def pull_command(self) -> str:
        """The command that fetches it."""
        return f"cfgen models pull {shlex.quote(str(self))}"


def parse_reference(text: str) -> Reference | None:
    """Read ``owner/name[@revision][/path/inside/the/repo]``.

    A revision with a slash is written with ``%2F``, but for the hub's own ``refs/pr/N``.

    Returns:
        The reference, or None if the text cannot be one.
    """
    match = _GRAMMAR.fullmatch(text)
    if match is None:
        return None
    repo, revision, file = match["repo"], match["revision"], match["file"]
    revision = revision and unquote(revision)
    # The hub allows no such names; a mistyped path to a file looks like one.
    if "--" in repo or ".." in repo or repo.endswith((".git", *WEIGHTS)):
        return None
    if not all(is_inner(part) for part in (revision, file) if part is not None):
        return None
    return Reference(repo, revision, file)


def cache_folder(environ: Mapping[str, str] = os.environ) -> Path:
    """The folder of the Hugging Face cache, whether it exists or not.

    Source: huggingface_hub/constants.py, which reads these variables once, when it is imported.
    """
    set_ = {name: os.path.expandvars(value) for name, value in environ.items() if value}
    base = set_.get("XDG_CACHE_HOME", "~/.cache")
    home = set_.get("HF_HOME", os.path.join(base, "huggingface"))
    hub = os.path.join(home, "hub")
    given = set_.get("HF_HUB_CACHE") or set_.get("HUGGINGFACE_HUB_CACHE") or hub
    try:
        return Path(given).expanduser()
    except RuntimeError:
        raise SetupError(
            "there is no home folder, so the cache of Hugging Face has no place",
            "set HOME, HF_HOME or XDG_CACHE_HOME to a folder",
        ) from None


def repo_folder(repo: str, cache: Path) -> Path:
    """The folder of a repository in the cache."""
    return cache / f"models--{repo.replace('/', '--')}"


def commits_of(repo: str, cache: Path) -> list[str]:
    """The commits of a repository that the cache holds, sorted."""
    snapshots = repo_folder(repo, cache) / "snapshots"
    return sorted(path.name for path in snapshots.glob("*") if path.is_dir())


def commit_of(reference: Reference, cache: Path) -> str | None:
    """The commit that a reference means, or None if the cache does not hold it."""
    revision = reference.revision or MAIN
    known = commits_of(reference.repo, cache)
    ref = repo_folder(reference.repo, cache) / "refs" / revision
    commit = (
        read_text(ref, encoding="ascii", errors="replace").strip() if ref.is_file() else revision
    )
    if commit in known:
        return commit
    if len(revision) < _SHORTEST_COMMIT:
        return None
    longer = [name for name in known if name.startswith(revision)]
    return longer[0] if len(longer) == 1 else None


def locate(text: str, *, what: str, cache: Path | None = None) -> Path:
    """Find a model or a file of one; nothing is downloaded.

    Args:
        text: A path on disk, which always wins if it exists, or a reference to the hub.
        what: What is looked for, for the error: ``model``, ``LoRA``.
        cache: The Hugging Face cache. By default where the environment says.

    Returns:
        A file or a folder; for a reference without a file, the folder of the snapshot.

    Raises:
        CheckpointError: It is neither on disk nor in the cache.
    """
    if text and os.path.exists(path := os.path.expanduser(text)):
        return Path(path)
    reference = parse_reference(text)
    if reference is None:
        raise CheckpointError(
            f"the {what} {text!r} is not on disk, and not named like one of the Hugging Face hub",
            "give a file, a folder or owner/name[@revision][/file]; `cfgen models list` lists all",
        )
    cache = cache_folder() if cache is None else cache
    commit = commit_of(reference, cache)
    if commit is not None:
        found = repo_folder(reference.repo, cache) / "snapshots" / commit / (reference.file or "")
        if found.exists():
            return found
    raise CheckpointError(
        f"the {what} {text!r} is neither on disk nor in the Hugging Face cache "
        f"{cache}{_others(reference, commit, cache)}",
        reference.pull_command,
    )


def is_inner(path: str) -> bool:
    """Whether a path given with slashes stays inside the folder it starts from, on any system."""
    return "\\" not in path and all(part not in ("", ".", "..") for part in path.split("/"))


def is_under(path: str, folder: str | None) -> bool:
    """Whether a path in a repository is `folder` or stands in it; all are in None."""
    return folder is None or path == folder or path.startswith(f"{folder}/")


def size_of(path: Path) -> int | None:
    """Bytes of a file, or None if there is none."""
    try:
        return path.stat().st_size
    except OSError:
        return None


def _others(reference: Reference, commit: str | None, cache: Path) -> str:
    """Where else the cache has what a reference names, for the error."""
    folder = repo_folder(reference.repo, cache) / "snapshots"
    others = [
        str(replace(reference, revision=name[:_SHORTEST_COMMIT]))
        for name in commits_of(reference.repo, cache)
        if name != commit and (folder / name / (reference.file or "")).exists()
    ]
    return f"; other revisions are there: {', '.join(others)}" if others else ""


def _written(revision: str) -> str:
    return revision if _HUB_REFS.fullmatch(revision) else quote(revision, safe="")

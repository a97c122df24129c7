"""Where a file of weights comes from and which preset it wants: always a guess, and from what.

Nothing in the tensors says "causal", "few-step" or "window 12", so the guess rests on what stands
beside a file, on its digest, and on names, in this order.
"""

from __future__ import annotations

import re
import reprlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

from cfgen.checkpoint.formats.base import read_json
from cfgen.checkpoint.identify.published import (
    CAUSAL_FORCING,
    CAUSAL_FORCING_1STEP,
    CAUSAL_FORCING_2STEP,
    CONTEXT_FORCING,
    FILES,
    INFINITY_ROPE,
    LONGLIVE,
    LONGLIVE_INFINITY,
    SELF_FORCING,
    SGF,
    SGF_FRAME,
    SGF_PLUS,
    SGF_PLUS_FRAME,
    Published,
    by_digest,
    by_name,
    by_repository,
)
from cfgen.errors import CheckpointError
from cfgen.files.reading import read_text

Basis = Literal[
    "sidecar", "header", "sha256", "repository", "title", "file name", "folder name", "nothing"
]

CERTAIN = ("sidecar", "header", "sha256", "repository")
"""What a choice may rest on; a file's name may be anything."""

RECIPES = (
    SELF_FORCING,
    LONGLIVE,
    LONGLIVE_INFINITY,
    INFINITY_ROPE,
    CAUSAL_FORCING,
    CAUSAL_FORCING_1STEP,
    CAUSAL_FORCING_2STEP,
    CONTEXT_FORCING,
    SGF,
    SGF_FRAME,
    SGF_PLUS,
    SGF_PLUS_FRAME,
    "mini",
    "mini-base",
)
"""Presets that a folder may be named like."""

KEY = "recipe"
HEADER_KEY = "cfgen.recipe"
"""Where a sidecar and the header of a file that cfgen wrote name a preset."""

TITLES = ("general.name", "modelspec.title")
"""Where headers of others keep a title."""

SIDECARS = (".yaml", ".yml", ".json")
SIDECAR_LIMIT = 1_000_000
"""Bytes of the longest file that may be a sidecar."""

COMMON = {"lora.pt", "model.pt", "diffusion_pytorch_model.safetensors"}
"""Names that files of many models have."""

FOLDERS = 3
"""Folders above a file whose names may tell."""

SAME = "a causal generator has the same tensors as the bidirectional one"


@dataclass(frozen=True, kw_only=True, slots=True)
class Guess:
    """What a file seems to be.

    Attributes:
        recipe: Preset that it wants, or empty.
        basis: What that rests on.
        reason: The same in words.
        others: More presets made for it.
        published: What it seems to be, or None.
    """

    recipe: str
    basis: Basis
    reason: str
    others: tuple[str, ...] = ()
    published: Published | None = None


def guess(
    path: Path, *, metadata: Mapping[str, object] | None = None, digests: Iterable[str] = ()
) -> Guess:
    """Guess which preset a file of weights wants.

    Args:
        path: The file.
        metadata: What its header says.
        digests: SHA-256 of the files that hold its tensors, if they are known.

    Raises:
        CheckpointError: A sidecar beside it cannot be read or names no preset.
    """
    found = next(_traces(path, metadata or {}, digests), None)
    told = _told(path, metadata or {})
    if told is not None:
        name, basis, reason = told
        return Guess(
            recipe=name, basis=basis, reason=reason, published=found.published if found else None
        )
    return found or Guess(recipe="", basis="nothing", reason=f"nothing tells: {SAME}")


def refuse_unsupported(path: Path, *, metadata: Mapping[str, object] | None = None) -> None:
    """Refuse a file of a model that no preset can run, where anything but its folder's name tells.

    Args:
        path: The file.
        metadata: What its header says.

    Raises:
        CheckpointError: It is one, and nobody wrote down that it is another.
    """
    metadata, digest = metadata or {}, cached_digest(path)
    found = next(_traces(path, metadata, [digest] if digest else []), None)
    if found is None or found.published is None or found.basis == "folder name":
        return
    if (why := found.published.unsupported) and _told(path, metadata) is None:
        raise CheckpointError(
            f"{path} is {found.published.what}, as far as it can be told ({found.reason}): {why}",
            f"take another model; if it is one, write `recipe: NAME` into {path.name}.yaml beside "
            "it, with the name of its preset",
        )


def cached_digest(path: Path) -> str | None:
    """SHA-256 of a file in the Hugging Face cache, as the name of its blob tells it; else None."""
    try:
        name = path.resolve().name
    except OSError:
        return None
    return name if path.is_symlink() and re.fullmatch("[0-9a-f]{64}", name) else None


def _told(path: Path, metadata: Mapping[str, object]) -> tuple[str, Basis, str] | None:
    """The preset that someone wrote down for this very file."""
    for sidecar in _sidecars(path):
        name = _read(sidecar).get(KEY)
        if name is None:
            continue
        if not isinstance(name, str) or not name:
            raise CheckpointError(
                f"{sidecar}: {KEY} must name a preset, got {reprlib.repr(name)}",
                "see cfgen presets list",
            )
        return name, "sidecar", f"{sidecar.name} beside it says so"
    name = metadata.get(HEADER_KEY)
    return (str(name), "header", "its header says so") if name else None


def _sidecars(path: Path) -> Iterator[Path]:
    for stem in dict.fromkeys((path.name, path.stem)):
        for ending in SIDECARS:
            beside = path.with_name(stem + ending)
            if beside != path and beside.is_file() and beside.stat().st_size <= SIDECAR_LIMIT:
                yield beside


def _read(sidecar: Path) -> Mapping[str, object]:
    import yaml

    if sidecar.suffix == ".json":
        return read_json(sidecar)
    try:
        found = yaml.safe_load(read_text(sidecar, limit=SIDECAR_LIMIT))
    except RecursionError:
        raise CheckpointError(f"{sidecar} cannot be read: it is nested too deeply") from None
    except (OSError, ValueError, TypeError, yaml.YAMLError) as error:
        raise CheckpointError(f"{sidecar} cannot be read: {error}") from error
    return found if isinstance(found, dict) else {}


def _traces(path: Path, metadata: Mapping[str, object], digests: Iterable[str]) -> Iterator[Guess]:
    """What tells where a file comes from, the surest first."""
    for digest in digests:
        if found := by_digest(digest):
            yield _from(found, "sha256", f"its sha256 is that of {found.name}")
    repo, inside = _cached(path)
    if repo and (found := _of_repository(repo, inside)):
        yield _from(found, "repository", f"it lies in the cache of {repo}")
    if found := _of_file(path):
        yield _from(found, "file name", f"it is named like {found.name}")
    yield from _by_names(path, metadata)


def _by_names(path: Path, metadata: Mapping[str, object]) -> Iterator[Guess]:
    if found := by_name(path.name):
        yield _from(found, "file name", f"it is called {path.name}")
    for title in [str(metadata[key]) for key in TITLES if key in metadata]:
        if found := by_name(title):
            yield _from(found, "title", f"its header calls it {title}")
    for folder in [parent.name for parent in path.absolute().parents][:FOLDERS]:
        if found := by_name(folder):
            yield _from(found, "folder name", f"it lies in a folder called {folder}")
        elif folder in RECIPES:
            reason = f"it lies in a folder called {folder}"
            yield Guess(recipe=folder, basis="folder name", reason=reason)


def _from(found: Published, basis: Basis, reason: str) -> Guess:
    first, others = (found.recipes[0], found.recipes[1:]) if found.recipes else ("", ())
    return Guess(recipe=first, basis=basis, reason=reason, others=others, published=found)


def _cached(path: Path) -> tuple[str, str]:
    """Repository and path inside it of a file in the Hugging Face cache; empty for others."""
    parts = path.absolute().parts
    at = next((i for i, part in enumerate(parts) if part.startswith("models--")), None)
    if at is None:
        return "", ""
    repo = parts[at].removeprefix("models--").replace("--", "/", 1)
    return repo, "/".join(parts[at + 3 :]) if parts[at + 1 : at + 2] == ("snapshots",) else ""


def _of_repository(repo: str, inside: str) -> Published | None:
    exact = (p for p in FILES if (p.repo.lower(), p.file) == (repo.lower(), inside))
    return next(exact, None) or by_repository(repo)


def _of_file(path: Path) -> Published | None:
    """A published file of this name, if no other has the same."""
    if path.name in COMMON:
        return None
    alike = [p for p in FILES if PurePosixPath(p.file).name == path.name]
    place = path.absolute().as_posix()
    exact = [p for p in alike if place.endswith(f"/{p.file}")]
    alike = exact if len(exact) == 1 else alike
    return alike[0] if len(alike) == 1 else None

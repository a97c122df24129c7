"""What is known of a file of weights: facts only, in no one's words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from cfgen.checkpoint.identify.preset_guess import Guess
from cfgen.checkpoint.inspect.network_types import Word
from cfgen.checkpoint.inspect.storage import Group, Stored


@dataclass(frozen=True, kw_only=True, slots=True)
class FileFacts:
    """One file on disk.

    Attributes:
        path: where it lies.
        nbytes: its size.
        sha256: its digest, None if it was not worked out.
    """

    path: Path
    nbytes: int
    sha256: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Refusal:
    """Why cfgen does not load a file, and what to do."""

    message: str
    hint: str | None


@dataclass(frozen=True, kw_only=True, slots=True)
class NetworkFacts:
    """The network in a file.

    Attributes:
        kind: what it is called in a configuration.
        title: what it is, in words.
        names: whose names its tensors have.
        prefix: what stands before every name.
        residue: what wrappers left inside names.
        choices: every prefix under which such a network is, if there are several.
        left_alone: how many tensors belong to something else, by the first part of their names.
        sizes: its sizes, by what they are called; empty if they cannot be told.
        numbers: how many numbers its weights are.
        tensors: each of its tensors.
        groups: the same by how they are stored.
        extras: tensors that belong to it and are no weights.
        second_set: how many tensors a second set of its weights has, which writes the memory.
        missing: names of tensors that it lacks.
        unused: names of tensors that have no place in it.
        reshaped: tensors of other shapes than they must have, in words.
    """

    kind: Word
    title: str
    names: str
    prefix: str
    residue: tuple[str, ...] = ()
    choices: tuple[str, ...] = ()
    left_alone: Mapping[str, int] = field(default_factory=dict)
    sizes: Mapping[str, object] = field(default_factory=dict)
    numbers: int = 0
    tensors: tuple[Stored, ...] = ()
    groups: tuple[Group, ...] = ()
    extras: tuple[str, ...] = ()
    second_set: int = 0
    missing: tuple[str, ...] = ()
    unused: tuple[str, ...] = ()
    reshaped: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Report:
    """What is known of a file of weights.

    Attributes:
        path: the file that was named.
        files: every file that tensors come from.
        container: what kind of file it is, empty if it is none that holds tensors.
        entries: how many tensors are in it.
        kinds: how many of them are of each dtype or block format.
        metadata: what its header says besides, cut short.
        network: the network in it, None if there is none or it cannot be told.
        guess: where it comes from and which preset it wants.
        refusal: why cfgen does not load it, None if it does.
        warnings: what is odd about it.
    """

    path: Path
    files: tuple[FileFacts, ...]
    container: str = ""
    entries: int = 0
    kinds: Mapping[str, int] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)
    network: NetworkFacts | None = None
    guess: Guess | None = None
    refusal: Refusal | None = None
    warnings: tuple[str, ...] = ()

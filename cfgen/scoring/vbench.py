"""A folder of films as VBench reads it: ``PROMPT-0.mp4`` to ``PROMPT-4.mp4``.

VBench counts the films of a prompt from 0, so the seeds of a prompt are numbered in their order;
``prompts.json`` holds the prompt of each file, as VBench's custom input takes it, and
``seeds.json`` the seed and the film that it was.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from cfgen.errors import InputRefused, OutputRefused
from cfgen.files.writing import disk_errors, json_bytes, link_or_copy, write_file
from cfgen.scoring.settings import Key, told_pairs

READ = (".mp4", ".gif")
"""Endings of the films that VBench reads."""

PER_PROMPT = 5
"""Films of a prompt that VBench looks for."""

_LONGEST = 255
"""Bytes that a file's name may have."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Exported:
    """What was put into the folder.

    Attributes:
        folder: The folder.
        files: Name of each file, and the film that it is.
        notes: What VBench will not read as it stands, a sentence each.
    """

    folder: Path
    files: dict[str, Path]
    notes: tuple[str, ...]


def export_vbench(films: Iterable[Path], folder: Path) -> Exported:
    """Put films into a folder for VBench, as links where the disk can; it must be empty or new.

    Raises:
        InputRefused: A film tells no prompt and seed, two have the same, or VBench cannot read one.
        OutputRefused: The folder is not empty.
        BudgetError, WriterError: The disk refused.
    """
    listed = list(films)
    keys = _keys(listed)
    numbers = _numbers(keys)
    files, prompts, seeds = {}, {}, {}
    for film, (prompt, seed) in zip(listed, keys, strict=True):
        name = _name(prompt, numbers[prompt, seed], film)
        files[name], prompts[name] = film, prompt
        seeds[name] = {"prompt": prompt, "seed": seed, "film": str(film)}
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise OutputRefused(
            f"{folder} is not an empty folder", "choose another for --export-vbench"
        )
    with disk_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for name, film in files.items():
            link_or_copy(film, folder / name)
        paths = {str(folder / name): prompt for name, prompt in prompts.items()}
        write_file(folder / "prompts.json", json_bytes(paths, indent=1))
        write_file(folder / "seeds.json", json_bytes(seeds, indent=1))
    most = max(numbers.values(), default=0) + 1
    note = f"VBench looks at {PER_PROMPT} films of a prompt, one has {most}"
    return Exported(folder=folder, files=files, notes=(note,) if most > PER_PROMPT else ())


def _keys(films: list[Path]) -> list[Key]:
    """Prompt and seed of each film."""
    told = dict(told_pairs(films))
    places: dict[Key, Path] = {}
    for film in films:
        if film not in told:
            raise InputRefused(
                f"{film} tells no prompt and seed: its .json is not beside it",
                "VBench needs the prompt of each film",
            )
        if film.suffix not in READ:
            raise InputRefused(f"{film} is read by VBench as one of {', '.join(READ)} only")
        other = places.setdefault(told[film], film)
        if other is not film:
            raise InputRefused(f"{film} and {other} have the same prompt and seed")
    return [told[film] for film in films]


def _numbers(keys: list[Key]) -> dict[Key, int]:
    """The place of each seed among those of its prompt."""
    seeds: dict[str, list[int]] = {}
    for prompt, seed in sorted(keys):
        seeds.setdefault(prompt, []).append(seed)
    return {
        (prompt, seed): number
        for prompt, found in seeds.items()
        for number, seed in enumerate(found)
    }


def _name(prompt: str, number: int, film: Path) -> str:
    """What VBench calls a film: it takes the prompt from the name.

    Raises:
        InputRefused: The prompt is no name of a file.
    """
    name = f"{prompt}-{number}{film.suffix}"
    if len(os.fsencode(name)) > _LONGEST or set(prompt) & {"/", "\0", "\n"} or not prompt:
        raise InputRefused(
            f"the prompt of {film} cannot be the name of a file, and VBench takes it from there",
            "leave that film out",
        )
    return name

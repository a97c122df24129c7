"""What is chosen where nothing is said: a seed, and a file name made from the prompt."""

from __future__ import annotations

import dataclasses
import secrets
import unicodedata
from pathlib import Path

from cfgen.config.schema import RenderConfig
from cfgen.errors import UsageError
from cfgen.video.formats import MP4
from cfgen.video.output import target_of

MAX_SLUG_BYTES = 80


def slug(text: str, max_nbytes: int = MAX_SLUG_BYTES) -> str:
    """Return `text` as part of a file name: lower-case letters and digits joined by hyphens.

    Letters of any script stay; the length is limited in bytes of UTF-8, which is what file systems
    count, and never cuts a letter. Text without letters or digits becomes ``video``.
    """
    normal = unicodedata.normalize("NFKC", text).lower()
    words = "".join(char if _is_letter(char) else " " for char in normal).split()
    bare = [word.lstrip(_marks(word)) for word in words]
    short = "-".join(filter(None, bare)).encode()[:max_nbytes].decode(errors="ignore")
    return short.strip("-") or "video"


def _is_letter(char: str) -> bool:
    """Whether it is a letter, a digit, or a mark on one: a vowel of Hindi, a tone of Vietnamese."""
    return char.isalnum() or unicodedata.category(char) in ("Mn", "Mc")


def _marks(word: str) -> str:
    """The marks in a word, with which none can begin."""
    return "".join(char for char in word if not char.isalnum())


def default_name(prompt: str, seed: int, ending: str = MP4.ending) -> str:
    """Return the output file name for a prompt and a seed."""
    return f"{slug(prompt)}-{seed}{ending}"


def completed(config: RenderConfig) -> RenderConfig:
    """The configuration with a prompt, a seed and an output; seed and name are chosen if need be.

    Raises:
        UsageError: There is no prompt.
    """
    if not config.prompt.strip():
        raise UsageError(
            "the prompt is empty",
            hint='say what the video shows: cfgen render "a red balloon drifts over snowy hills"',
        )
    seed = random_seed() if config.seed is None else config.seed
    output = config.output or Path(
        default_name(config.prompt, seed, config.encode.ending or MP4.ending)
    )
    if output.is_symlink():  # what it leads to is meant, and stands beside its own run folder
        output = target_of(output)
    return dataclasses.replace(config, seed=seed, output=output)


def random_seed() -> int:
    """A seed chosen at random."""
    return secrets.randbelow(2**31)

"""What to say of a command line that cannot be read: the nearest name, and quotes for a prompt."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence

from cfgen.config.keys import keys

_ELSEWHERE = {
    "cfg": "--set schedule.guidance=NUMBER",
    "cfg_scale": "--set schedule.guidance=NUMBER",
    "guidance_scale": "--set schedule.guidance=NUMBER",
    "steps": "--set schedule.timesteps=[1000, ...]",
    "frames": "--duration",
    "num_frames": "--duration",
    "length": "--duration",
    "width": "--size",
    "height": "--size",
    "checkpoint": "--model",
    "ckpt": "--model",
}
"""Flags of other tools, and what does the same in cfgen."""


def nearest_of(name: str, known: Iterable[str]) -> str:
    """The one of `known` that is most like a name, or nothing."""
    return next(iter(difflib.get_close_matches(name, list(known), n=1)), "")


def no_such_command(name: str, known: Sequence[str], inner: Iterable[tuple[str, str]]) -> str:
    """What to say of a command that does not exist.

    Args:
        name: The word that stands where a command should.
        known: The commands.
        inner: The commands within groups, each after its group.
    """
    said = f"No such command {name!r}."
    if " " in name.strip():  # a prompt, most likely
        return f"{said} Did you mean 'cfgen render {quoted(name)}'?"
    if match := nearest_of(name, known):
        return f"{said} Did you mean {match!r}?"
    for group, command in inner:
        if command == name:
            return f"{said} Did you mean '{group} {command}'?"
    return said


def no_such_option(name: str, typed: Sequence[str], known: Sequence[str]) -> str:
    """What to say of a flag that does not exist.

    Args:
        name: The flag as the parser has it: of `-duration` that is `-d`.
        typed: All arguments.
        known: The long flags of the command.
    """
    if not name.startswith("--"):
        whole = next((word for word in typed if re.match(rf"{re.escape(name)}[a-z]", word)), "")
        name = f"-{whole}" if whole else name
    said = f"No such option: {name if name in typed else name.removeprefix('-')}"
    short = name.lstrip("-").replace("-", "_")
    if "--set" in known:
        matching = [key.name for key in keys().values() if key.name.rpartition(".")[2] == short]
        if matching and not keys()[matching[0]].flag:
            return f"{said}. Did you mean '--set {matching[0]}=VALUE'?"
    instead = _ELSEWHERE.get(short, "")
    if instead.split(" ")[0] in known:
        return f"{said}. Did you mean '{instead}'?"
    match = nearest_of(name, known)
    return f"{said}. Did you mean '{match}'?" if match else said


def too_many(
    command: str, argument: tuple[str, str] | None, extra: Sequence[str], typed: Sequence[str]
) -> str:
    """What to say of more arguments than a command takes.

    Args:
        command: Its name.
        argument: What its last argument is called, and what was read as it; None if it takes none.
        extra: What was left over.
        typed: All arguments.
    """
    listed = " ".join(extra)
    if "--prompt" in typed:
        after = typed[typed.index("--prompt") + 1 :]
        words = after[: next((n for n, word in enumerate(after) if word[:1] == "-"), len(after))]
        if set(words) & set(extra):
            return f"unexpected words: {listed}. Put the prompt in quotes: --prompt {quoted(words)}"
    if argument is None:
        return f"{command} takes no arguments, got {listed!r}"
    name, value = argument
    if name == "PROMPT":
        whole = quoted([value, *extra])
        return f"unexpected words: {listed}. Put the prompt in quotes: cfgen {command} {whole}"
    return (
        f"{command} takes one {name}, got {1 + len(extra)}: {value} {listed}. A name with spaces "
        f"must stand in quotes: {quoted([value, *extra])}"
    )


def quoted(words: str | Sequence[str]) -> str:
    """Words as one argument of a shell, on any system as long as they are plain."""
    text = words if isinstance(words, str) else " ".join(words)
    plain = re.search(r'["$`\\!]', text) is None
    return f'"{text}"' if plain else "'" + text.replace("'", "'\\''") + "'"

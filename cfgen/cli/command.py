"""A command of cfgen: its flags in sections of help, and hints where arguments cannot be read.

Typer draws panels with Rich; the help here is plain text of 80 columns that can be piped, under
the same panel names. Contexts and formatters are annotated by what is used of them, because
Typer's own classes have no public names.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Protocol, cast

import typer
from typer.core import TyperCommand, TyperGroup

from cfgen.cli.suggestions import no_such_option, too_many

FILM = "Film"
MODEL = "Model"
SPEED = "Memory and speed"
RESUME = "Resume"
OUTPUT = "Output"
RARE = "Rare"

SECTIONS = ("Options", FILM, MODEL, SPEED, RESUME, OUTPUT, RARE)
"""Sections of help, in their order; `Options` holds what a command has of its own."""

_NAME_CELLS = 28
"""Cells of the widest flag that still stands on the line of its help."""


_ADDRESS = r"local|auto|\S+:\d+|\S+://\S+"


class Formatter(Protocol):
    """What is used of Typer's formatter."""

    def section(self, name: str) -> AbstractContextManager[None]:
        """A section of the page."""

    def write_dl(
        self, rows: Sequence[tuple[str, str]], col_max: int = ..., col_spacing: int = ...
    ) -> None:
        """Write names and what they mean, in two columns."""


class Command(TyperCommand):
    """A command whose help has sections and whose usage errors say what to do."""

    def format_options(self, ctx: object, formatter: Formatter) -> None:
        """Write arguments, then flags section by section, all in the same columns."""
        arguments: list[tuple[str, str]] = []
        sections: dict[str, list[tuple[str, str]]] = {name: [] for name in SECTIONS}
        for param in self.get_params(ctx):  # type: ignore[arg-type]
            record = param.get_help_record(ctx)  # type: ignore[arg-type]
            if record is None:
                continue
            if param.param_type_name == "argument":
                arguments.append((getattr(param, "metavar", None) or record[0], record[1]))
                continue
            panel = getattr(param, "rich_help_panel", None)
            panel = OUTPUT if "--help" in param.opts else panel or "Options"
            sections[panel].append(record)
        rows = {"Arguments": arguments, **sections}
        names = [len(name) for listed in rows.values() for name, _ in listed]
        width = max(n for n in names if n <= _NAME_CELLS)
        for title, listed in rows.items():
            if listed:
                with formatter.section(title):
                    formatter.write_dl([(f"{name:{width}}", about) for name, about in listed])

    def parse_args(self, ctx: object, args: list[str]) -> list[str]:
        """Parse arguments; a flag that does not exist is told with the nearest that does.

        Raises:
            Exception: Typer's own, for arguments that cannot be read.
        """
        args = _with_left_out(args, [param for param in self.params if _optional(param)])
        context, typed = cast(typer.Context, ctx), list(args)
        context.allow_extra_args = True
        try:
            rest = super().parse_args(context, args)
        except Exception as error:
            if hasattr(error, "possibilities"):
                known = [flag for param in self.params for flag in param.opts if flag[:2] == "--"]
                error.possibilities = None
                error.message = no_such_option(  # type: ignore[attr-defined]
                    str(getattr(error, "option_name", "")), typed, [*known, "--help"]
                )
            raise
        if rest and not context.resilient_parsing:
            context.fail(too_many(self.name or "", self._argument(context), rest, typed))
        return rest

    def _argument(self, context: typer.Context) -> tuple[str, str] | None:
        """What the last argument is called and what was read as it, if the command takes any."""
        taken = [param for param in self.params if param.param_type_name == "argument"]
        if not taken:
            return None
        last = taken[-1]
        return str(getattr(last, "metavar", None) or last.name), str(context.params[last.name])


def _optional(param: object) -> bool:
    """Whether the value of a flag may be left out, as its name for it says."""
    named = str(getattr(param, "metavar", None))
    return named.startswith("[") and getattr(param, "param_type_name", "") == "option"


def _with_left_out(args: list[str], flags: Sequence[object]) -> list[str]:
    """Arguments in which a flag with an optional value has one, an empty one if it was left out.

    Typer knows no such flags. What follows one is its value only if it looks like an address: the
    argument of a command may follow too.
    """
    names = {name for flag in flags for name in cast(list[str], getattr(flag, "opts", []))}
    given: list[str] = []
    for i, arg in enumerate(args):
        if arg == "--":
            return [*given, *args[i:]]
        given.append(arg)
        if arg in names and not re.fullmatch(_ADDRESS, (args[i + 1 :] or [""])[0]):
            given.append("")
    return given


def built(app: typer.Typer) -> TyperCommand | TyperGroup:
    """Build what a module's app holds, with commands of this class."""
    for registered in app.registered_commands:
        registered.cls = Command
    return cast(TyperCommand | TyperGroup, typer.main.get_command(app))

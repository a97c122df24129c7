"""The `cfgen` command: commands, each imported when it is needed, and the one error boundary."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from importlib import import_module
from importlib.util import find_spec
from typing import Annotated, cast

import typer
from typer.core import TyperCommand, TyperGroup

from cfgen import __version__
from cfgen.cli import signals, together
from cfgen.cli.command import built
from cfgen.cli.console import Console
from cfgen.cli.suggestions import no_such_command
from cfgen.errors import CfgenError, Halt, Interrupted
from cfgen.out_of_memory import exhausted, is_out_of_memory
from cfgen.parallel.launch import launched
from cfgen.plain_text import printable

_COMMANDS = {
    "render": "cfgen.cli.render",
    "resume": "cfgen.cli.resume",
    "branch": "cfgen.cli.branch",
    "retry": "cfgen.cli.retry",
    "decode": "cfgen.cli.decode",
    "batch": "cfgen.cli.batch",
    "jobs": "cfgen.cli.jobs",
    "report": "cfgen.cli.report",
    "plan": "cfgen.cli.plan",
    "presets": "cfgen.cli.presets",
    "score": "cfgen.cli.score",
    "inspect": "cfgen.cli.inspect",
    "quantize": "cfgen.cli.quantize",
    "convert": "cfgen.cli.convert",
    "bench": "cfgen.cli.bench",
    "doctor": "cfgen.cli.doctor",
    "models": "cfgen.cli.models",
    "train": "cfgen.cli.train",
}

_WHEN = dict.fromkeys(
    ("render", "branch", "decode", "batch"), "before the first chunk: nothing was begun"
) | dict.fromkeys(("resume", "retry"), "before it went on: nothing was changed")
"""What a command came to that was interrupted before it made chunks."""

SPIN = "2000"
"""How long GNU OpenMP's idle threads spin before they sleep. By default it is so long that two
renders on one machine, or a render beside other work, keep each other from working: two films of
10 s at once on 2 cores take 21 s with this and 77 s without, and one alone as long as before."""

_HELP = """Render long videos from text, chunk by chunk, at a flat memory cost.

\b
Examples:
  cfgen render "a red balloon drifts over snowy hills" --duration 30s -o a.mp4
  cfgen plan --duration 10m
  cfgen presets show mini
  cfgen bench
  cfgen doctor

\b
Exit codes: 0 done, 1 failed while working, 2 wrong flag or value,
3 refused before work began, 130 interrupted by Ctrl-C (143 by SIGTERM, 129 by
SIGHUP, as when a terminal is closed): resumable.
"""


class _Commands(TyperGroup):
    """Imports a command's module when the command is looked up; the one place errors end at.

    Contexts are annotated `object` because Typer's own context class has no public name.
    """

    def list_commands(self, ctx: object) -> list[str]:
        # A copy of cfgen without its training part still renders, and offers no `train`.
        return [name for name, module in _COMMANDS.items() if find_spec(module)]

    def get_command(self, ctx: object, cmd_name: str) -> TyperCommand | TyperGroup | None:
        if cmd_name not in self.list_commands(ctx):
            return None
        command = built(import_module(_COMMANDS[cmd_name]).app)
        command.name = cmd_name
        return command

    def resolve_command(self, ctx: object, args: list[str]) -> object:  # type: ignore[override]
        context, known = cast(typer.Context, ctx), self.list_commands(ctx)
        if args[0] not in known and not context.resilient_parsing:
            context.fail(no_such_command(args[0], known, self._inner(ctx)))
        return super().resolve_command(context, args)

    def _inner(self, ctx: object) -> Iterator[tuple[str, str]]:
        """The commands within groups, each after its group."""
        for name in self.list_commands(ctx):
            command = self.get_command(ctx, name)
            for inner in getattr(command, "commands", {}):
                yield name, inner

    def parse_args(self, ctx: object, args: list[str]) -> list[str]:
        before = args[: args.index("--")] if "--" in args else args
        self._json = "--json" in before
        try:
            return super().parse_args(ctx, args)  # type: ignore[arg-type]
        except Exception as error:
            self._tell_usage(Console(), error)
            raise

    _json = False

    def _tell_usage(self, console: Console, error: BaseException) -> None:
        """Before Typer reports a wrong argument on stderr, tell it in JSON if that is asked for."""
        _clean(error)
        if self._json and isinstance(message := getattr(error, "message", None), str):
            console.configure(json=True)
            console.wrong_usage(getattr(error, "format_message", lambda: message)())

    def invoke(self, ctx: object) -> object:
        context = cast(typer.Context, ctx)
        console = context.obj = Console()
        try:
            return super().invoke(context)
        except (Exception, Halt, KeyboardInterrupt) as error:
            told = _told(error, context.invoked_subcommand or "")
            if told is None and _is_typers(error):
                self._tell_usage(console, error)
                raise
            signals.settle(1 if told is None else told.exit_code)
            if told is None:
                console.bug(error)
                raise typer.Exit(1) from None
            console.error(told)
            raise typer.Exit(told.exit_code) from None
        finally:
            console.close()


def _told(error: BaseException, command: str) -> CfgenError | None:
    """What there is to tell of an error in a sentence, or None if nobody foresaw it."""
    if isinstance(error, Interrupted):
        return error
    if halt := signals.halted(error):  # whatever it led to on its way up
        when = "before the work was finished"
        if isinstance(error, Halt) or signals.heard():
            when = _WHEN.get(command, when)
        return Interrupted(f"{halt.why} {when}", exit_code=halt.exit_code)
    if isinstance(error, CfgenError):
        return error
    return exhausted(error) if is_out_of_memory(error) else None


def _is_typers(error: BaseException) -> bool:
    """Whether Typer reports an error itself: its own ones (usage, exit) carry an exit code."""
    return isinstance(error, BrokenPipeError | typer.Abort) or hasattr(error, "exit_code")


app = typer.Typer(
    cls=_Commands,
    help=_HELP,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 80},
)


def _clean(error: BaseException) -> None:
    """Let what Typer tells of a wrong argument give the terminal no orders."""
    for name in ("message", "option_name", "param_hint"):
        text = getattr(error, name, None)
        if isinstance(text, str):
            setattr(error, name, printable(text))


def _show_version(wanted: bool) -> None:
    if wanted:
        Console().result(f"cfgen {__version__}", {"version": __version__})
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool,
        typer.Option("--version", is_eager=True, callback=_show_version, help="Show the version."),
    ] = False,
) -> None:
    """Hold the options of `cfgen` itself."""


def main() -> None:
    """Run the command line under `signals.run`."""
    signals.run(command)


def command() -> None:
    """Run the command line, signals being heeded already."""
    if hasattr(signal, "SIGUSR1"):
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # until there is something to tell
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", SPIN)
    told = launched() if set(sys.argv[1:2]) & set(together.COMMANDS) else None
    if told is None:
        app()
    else:
        together.run(app, told)

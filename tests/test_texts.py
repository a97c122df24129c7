"""Every text of help and every sentence of an error stands in `golden/texts.txt`.

After a change of words: ``pytest tests/test_texts.py --update-golden``, then read the difference.
Other tests assert the class or the code of an error and the value, file or key that it names, so
that words are mended here alone.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import typer

from cfgen import errors
from cfgen.cli.app import app
from tests.conftest import ROOT

ERRORS = {
    name
    for name, found in vars(errors).items()
    if isinstance(found, type) and issubclass(found, errors.CfgenError)
} | {"Problem", "Notice"}


TEXT = (ast.Constant, ast.JoinedStr)
OF_TYPER = ("install_completion", "show_completion", "help")


def help_of(command: Any, path: str = "cfgen") -> Iterator[str]:
    """What each command, argument and flag says of itself; layout is the business of Typer."""
    texts = [f"$ {path} --help", *filter(None, (command.help, command.epilog))]
    for parameter in command.params:
        if getattr(parameter, "hidden", False) or parameter.name in OF_TYPER:
            continue
        told = getattr(parameter, "help", None)
        texts.append(f"{' '.join(parameter.opts)}: {told}")
    yield "\n".join(texts)
    for name in command.list_commands(None) if hasattr(command, "list_commands") else ():
        yield from help_of(command.get_command(None, name), f"{path} {name}")


def sentence(node: ast.expr) -> str:
    """A text as it stands in the source, with ``{...}`` where a value comes in."""
    match node:
        case ast.Constant(value=str(text)):
            return text
        case ast.JoinedStr(values=parts):
            return "".join(sentence(part) for part in parts)
        case ast.FormattedValue(value=value):
            return f"{{{ast.unparse(value)}}}"
        case _:
            return f"{{{ast.unparse(node)}}}"


def sentences(file: Path) -> Iterator[str]:
    """What the errors of a module say, and their hints below them, in the order of the source."""
    calls = (node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Call))
    for call in sorted(calls, key=lambda call: (call.lineno, call.col_offset)):
        name = call.func.attr if isinstance(call.func, ast.Attribute) else ast.unparse(call.func)
        given = [*call.args, *(word.value for word in call.keywords)]
        if name not in ERRORS or not any(isinstance(each, TEXT) for each in given):
            continue
        first, *others = (sentence(value) for value in given)
        yield "\n".join((f"{name}: {first}", *(f"    {text}" for text in others)))


def test_help_and_errors_say_what_is_agreed(
    golden_text: Callable[[str, str], None],
) -> None:
    pages = sorted(help_of(typer.main.get_command(app)))
    for file in sorted((ROOT / "cfgen").rglob("*.py")):
        if said := list(sentences(file)):
            pages.append("\n".join((f"# {file.relative_to(ROOT).as_posix()}", *said)))
    lines = "\n\n".join(pages).splitlines()
    golden_text("texts.txt", "\n".join(line.rstrip() for line in lines) + "\n")

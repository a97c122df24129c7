"""Help in sections, completion, and what a wrong command line is told."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace

import pytest
import typer
from typer.testing import Result

from cfgen.cli import completion
from cfgen.cli.app import app
from cfgen.cli.command import RARE, SECTIONS
from cfgen.cli.suggestions import quoted
from cfgen.config.keys import FLAGS, keys

Run = Callable[..., Result]

RELATIVES = ("render", "resume", "branch", "retry", "batch", "plan", "bench")


def _params(command: str) -> Sequence[object]:
    found = typer.main.get_command(app).get_command(None, command)  # type: ignore[union-attr]
    return found.params


def _sections(page: str) -> list[str]:
    return re.findall(r"^([A-Z][\w ]+):$", page, re.MULTILINE)


@pytest.mark.parametrize("command", RELATIVES)
def test_flags_stand_in_sections_in_one_order_and_the_rare_ones_last(
    cfgen: Run, command: str
) -> None:
    page = cfgen(command, "--help").stdout
    found = [name for name in _sections(page) if name in SECTIONS]
    assert found == [name for name in SECTIONS if name in found]
    assert (found[-1], "Options" in found) == (RARE, False)
    rare = page[page.index(f"\n{RARE}:") :]
    flags = {flag for param in _params(command) for flag in param.opts}  # type: ignore[attr-defined]
    for flag in ("--rng", "--commit-reads", "--allow-changed", "--compile", "--debug"):
        assert (f"\n  {flag}" in rare) == (flag in flags), flag
    assert max(map(len, page.splitlines())) <= 80


def test_the_film_comes_first_in_the_help_of_render(cfgen: Run) -> None:
    page = cfgen("render", "--help").stdout
    assert _sections(page)[-6:] == list(SECTIONS[1:])
    assert page.index("\nFilm:") < page.index("\n  --duration") < page.index("\nModel:")


def test_a_value_has_one_flag_and_one_key_told_in_both_places() -> None:
    flags = {
        param.opts[-1]: param.help or ""  # type: ignore[attr-defined]
        for param in _params("render")
    }
    flags["PROMPT"] = flags.pop("prompt")
    for key, flag in FLAGS.items():
        assert flag in flags
        assert keys()[key].flag == flag
        assert flag == "PROMPT" or f"key: {key}]" in flags[flag], flag
    told = re.findall(r"key: ([\w.]+)\]", " ".join(flags.values()))
    assert sorted(told) == sorted(set(FLAGS) - {"prompt"})


def test_keys_are_listed_with_their_flags(cfgen: Run) -> None:
    lines = cfgen("presets", "keys").stdout.splitlines()
    assert "memory.policy  --memory" in lines
    assert "memory.tau" in lines
    assert max(map(len, lines)) <= 80


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("rendr", "No such command 'rendr'. Did you mean 'render'?"),
        ("plna", "No such command 'plna'. Did you mean 'plan'?"),
        ("pull x", "No such command 'pull'. Did you mean 'models pull'?"),
        ("xyzzy", "No such command 'xyzzy'."),
        ("jobs lst", "No such command 'lst'. Did you mean 'list'?"),
        ("render x --durration 3s", "No such option: --durration. Did you mean '--duration'?"),
        ("render x -duration 3s", "No such option: -duration. Did you mean '--duration'?"),
        ("render x -x", "No such option: -x"),
        ("render x --xyzzy", "No such option: --xyzzy"),
        (
            "render x --guidance 3",
            "No such option: --guidance. Did you mean '--set schedule.guidance=VALUE'?",
        ),
        ("render x --num-frames 81", "No such option: --num-frames. Did you mean '--duration'?"),
        ("resume --verbos", "No such option: --verbos. Did you mean '--verbose'?"),
        ("jobs gc --budgt 1", "No such option: --budgt. Did you mean '--budget'?"),
        (
            "render a red kite --seed 7",
            'unexpected words: red kite. Put the prompt in quotes: cfgen render "a red kite"',
        ),
        (
            "branch a.mp4 --at 3s --prompt a red kite -o b.mp4",
            'unexpected words: red kite. Put the prompt in quotes: --prompt "a red kite"',
        ),
        ("plan a kite", "plan takes no arguments, got 'a kite'"),
        (
            "resume my film.mp4",
            "resume takes one RUN, got 2: my film.mp4. A name with spaces must stand in quotes: "
            '"my film.mp4"',
        ),
    ],
)
def test_a_wrong_command_line_is_told_what_was_meant(cfgen: Run, arguments: str, said: str) -> None:
    result = cfgen(*arguments.split())
    assert result.exit_code == 2
    assert result.stderr.splitlines()[-1] == f"Error: {said}"


def test_a_prompt_where_a_command_should_stand_is_shown_how_to_render(cfgen: Run) -> None:
    last = cfgen("a red kite").stderr.splitlines()[-1]
    assert last.endswith("Did you mean 'cfgen render \"a red kite\"'?")


@pytest.mark.parametrize(
    ("words", "shown"),
    [("a kite", '"a kite"'), ('a "kite"', "'a \"kite\"'"), ("a $5 dog's", "'a $5 dog'\\''s'")],
)
def test_words_are_quoted_for_a_shell(words: str, shown: str) -> None:
    assert quoted(words) == shown


@pytest.mark.parametrize(
    ("flag", "typed", "offered"),
    [
        ("--preset", "m", ["mini"]),
        ("--memory", "", ["full", "window", "slow_fast", "recency", "relax", "compressed"]),
        ("--commit-reads", "", ["all", "fast", "newest:"]),
        ("--backend", "t", ["torch", "triton"]),
        ("--kv-cache", "", ["auto", "bf16", "int8", "fp8"]),
        ("--snapshot", "l", ["latents"]),
        ("--offload", "b", ["blocks"]),
        ("--allow-changed", "c", ["cfgen_version"]),
        ("--set", "memory.tau", ["memory.tau=", "memory.tau=0.95"]),
        ("--set", "encode.quality=", [f"encode.quality={q}" for q in ("draft", "good", "best")]),
        ("--set", "xyzzy", []),
    ],
)
def test_the_shell_is_offered_values(flag: str, typed: str, offered: list[str]) -> None:
    param = next(each for each in _params("render") if flag in each.opts)  # type: ignore[attr-defined]
    found = param.shell_complete(SimpleNamespace(), typed)  # type: ignore[attr-defined]
    assert [item.value for item in found] == offered


def test_every_key_is_offered_for_set() -> None:
    assert [name for name, _ in completion.assignments("")] == [f"{key}=" for key in keys()]


def test_models_of_the_cache_are_offered(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert completion.models("") == []
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    place = tmp_path / "models--owner--wan" / "snapshots" / ("a" * 40)
    place.mkdir(parents=True)
    refs = tmp_path / "models--owner--wan" / "refs"
    refs.mkdir()
    (refs / "main").write_text("a" * 40)
    for name in ("big.safetensors", "notes.txt"):
        (place / name).write_text("x")
    assert completion.models("own") == ["owner/wan", "owner/wan/big.safetensors"]
    assert completion.models("other") == []


def test_the_shell_completes_through_the_lazy_commands(
    cfgen: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("_ROOT_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", "cfgen render x --memory w")
    monkeypatch.setenv("COMP_CWORD", "4")
    assert cfgen().stdout == "window\n"

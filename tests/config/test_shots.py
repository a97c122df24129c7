"""Shots as people and other tools write them."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from cfgen.config.batch_list import Clip, read_list
from cfgen.config.loader import from_mapping, load
from cfgen.config.schema import to_mapping
from cfgen.config.shots import TRANSITIONS, Shot, parse_shots, total_s
from cfgen.errors import PresetError
from cfgen.pipeline.naming import slug

KITE = "a blue kite: at night, in 3 colours"


def shots_of(*texts: str, **more: str) -> list[str]:
    config = load({"shots": list(texts), **more}, environ={}).config
    return [str(shot) for shot in config.shots]


def refused(given: dict[str, object], **more: object) -> str:
    with pytest.raises(PresetError) as caught:
        load(given, environ={}, **more)  # type: ignore[arg-type]
    return str(caught.value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"8s: {KITE}", f"8s: {KITE}"),
        ("6s cut: a  star", "6s cut: a star"),
        ("0:08 recache :  a star\n over sand", "8s recache: a star over sand"),
        ("1:05: a star", "65s: a star"),
        ("2m30s fresh: 3:1 a star", "150s fresh: 3:1 a star"),
        (".5s flush: a star", "0.5s flush: a star"),
        ("12.3456789: a star", "12.345679s: a star"),
    ],
)
def test_a_shot_is_written_in_a_line(text: str, expected: str) -> None:
    assert shots_of(text) == [expected]
    assert shots_of(expected) == [expected]


WRONG = {
    "a red balloon": "write TIME: PROMPT",
    "8s:a red balloon": "write TIME: PROMPT",
    "8s": "write TIME: PROMPT",
    "8s: ": "write TIME: PROMPT",
    "1:05 boats": "write TIME: PROMPT",
    "8s cutt: a star": "did you mean 'cut'?",
    "8x: a star": "'8x' is not a duration",
    "0s: a star": "longer than 0 seconds",
    "-3s: a star": "write TIME: PROMPT",
}


@pytest.mark.parametrize("text", WRONG)
def test_what_is_no_shot_is_refused_in_a_sentence(text: str) -> None:
    said = refused({"shots": ["5s: a kite", text]})
    assert said.startswith("--shot: shot 2")
    assert WRONG[text] in said
    assert "\n" not in said


def test_a_file_has_shots_as_mappings_or_lines(tmp_path: Path) -> None:
    file = tmp_path / "film.yaml"
    file.write_text(
        """\
transition: flush
shots:
  - 8s: a red balloon
"""
    )
    assert "shot 1 has '8s', which is no key" in refused({}, run_file=file)
    file.write_text(
        f"""\
transition: flush
shots:
  - "8s: {KITE}"
  - {{prompt: a star, duration: 1:05, transition: cut}}
  - {{prompt: a star, duration: 3}}
"""
    )
    config = load({}, run_file=file, environ={}).config
    assert [str(shot) for shot in config.shots] == [f"8s: {KITE}", "65s cut: a star", "3s: a star"]
    assert (config.duration_s, config.prompt) == (76, f"{KITE} | a star | a star")
    assert from_mapping(to_mapping(config), label="run.json") == config
    for line, said in {
        "{prompt: a star}": "shot 1 has no `duration`",
        "{duration: 3s}": "shot 1 has no `prompt`",
        "{duration: 3s, prompt: [a]}": "shot 1 must hold one value for each key",
        "{duration: 3s, prompt: a, seed: 3}": "shot 1 has 'seed', which is no key",
        "[3s, a]": "shot 1 is a list",
    }.items():
        file.write_text(f"shots:\n  - {line}\n")
        assert said in refused({}, run_file=file)


def test_shots_and_one_prompt_are_two_ways_to_say_it(tmp_path: Path) -> None:
    file = tmp_path / "film.yaml"
    file.write_text("shots: ['8s: a star', '4s: a kite']\n")
    said = refused({"prompt": "a boat"}, run_file=file)
    assert said.startswith("PROMPT: does not go with shots")
    assert "have a duration each" in refused({"duration": "3s"}, run_file=file)
    config = load({}, run_file=file, environ={"CFGEN_FPS": "8"}).config
    assert config.duration_s == 12
    weaker = load({"shots": "3s: a | 4s: b"}, environ={"CFGEN_DURATION": "9s"}).config
    assert weaker.duration_s == 7


def test_a_memory_that_keeps_all_cannot_commit_it_again() -> None:
    shots = ["5s: a kite", "5s recache: a star"]
    assert "shot 2 cannot begin with recache: memory full" in refused(
        {"shots": shots, "memory.policy": "full"}
    )
    plain = ["5s recache: a kite", "5s: a star"]
    given: dict[str, object] = {"shots": plain, "memory.policy": "full"}
    assert "cannot begin" in refused({**given, "transition": "recache"})
    assert load({**given, "transition": "flush"}, environ={}).config.shots  # type: ignore[dict-item]


@given(
    st.lists(
        st.builds(
            Shot,
            prompt=st.text("ab :|[]#;-", min_size=1).map(lambda t: " ".join(f"x{t}".split())),
            duration_s=st.integers(1, 10**10).map(lambda n: n / 1e6),
            transition=st.sampled_from([None, *TRANSITIONS]),
        ),
        min_size=1,
        max_size=4,
    )
)
def test_what_is_recorded_is_read_again_exactly(shots: list[Shot]) -> None:
    again = parse_shots([str(shot) for shot in shots])
    assert list(again) == shots
    assert total_s(again) == total_s(shots)


def read(text: str, label: str = "list.txt") -> list[Clip]:
    return read_list(text, label=label, folder=Path("v"), environ={}, slug=slug)


def test_a_list_of_films_of_shots() -> None:
    plain, film, again = read(
        """\
version: 1
defaults: {duration: 20s, seed: 7}
clips:
  - a red kite
  - {shots: ["8s: a star", "4s cut: a boat"], seed: 3}
  - name: other
    shots: [{prompt: a star, duration: 2s}, {prompt: a cube, duration: 3s, transition: fresh}]
""",
        "list.yaml",
    )
    assert (plain.config.duration_s, film.config.duration_s, again.config.duration_s) == (20, 12, 5)
    assert (film.name, again.name) == ("a-star-a-boat", "other")
    (one,) = read('[{"shots": [{"duration": 4, "prompt": "a star"}, "3s: a boat"], "seed": 3}]')
    assert [str(shot) for shot in one.config.shots] == ["4s: a star", "3s: a boat"]
    with pytest.raises(PresetError, match="must have a `prompt` or `shots`, not both"):
        read('[{"shots": ["3s: a boat"], "prompt": "a star"}]')
    with pytest.raises(PresetError, match="counts the frames"):
        read('[{"shots": ["3s: a boat"], "frames": 81}]')


INFINITY = {
    "a star[3s] | a boat[4.5s]": (["3s: a star", "4.5s flush: a boat"], False),
    "a star[3s#] | a boat[4.5s]": (["3s: a star", "4.5s flush: a boat"], True),
    "a star [10s] | a boat [ 0.1 s # ] | a, b[10s]": (
        ["9.75s: a star", "0.75s cut: a boat", "9.75s flush: a, b"],
        True,
    ),
    "a star[3s]": (["3s: a star"], False),
}


@pytest.mark.parametrize("line", INFINITY)
def test_segments_of_infinity_rope_are_shots(line: str) -> None:
    first, film = read(f"a red kite\n{line}\n")
    shots, told = INFINITY[line]
    assert first.config.shots == ()
    assert [str(shot) for shot in film.config.shots] == shots
    assert ("its code cuts at the start of the next one" in film.note) == told


def test_a_line_of_which_only_some_segments_have_a_time_is_refused() -> None:
    with pytest.raises(PresetError, match="segment 2 has no time"):
        read("a star[3s] | a boat\n")
    (clip,) = read("a star | a boat [wide]\n")
    assert clip.config.prompt == "a star | a boat [wide]"


def test_the_presets_say_how_a_shot_begins() -> None:
    folder = Path(__file__).parents[2] / "presets"
    said = {
        path.stem: (yaml.safe_load(path.read_text()) or {}).get("transition")
        for path in folder.glob("*.yaml")
        if not path.stem.startswith("train.")
    }
    assert {name: how for name, how in said.items() if how} == {
        "mini": "continue",
        "mini-base": "continue",
        "longlive": "recache",
        "context-forcing": "recache",
        "infinity-rope": "flush",
        "far": "continue",
        "framepack": "continue",
        "framepack-inverted": "continue",
    }

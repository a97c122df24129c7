"""Lists of clips are read whole or refused with every reason; nothing leads out of the folder."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cfgen.config.batch_list import Clip, clip_seed, read_list
from cfgen.errors import CheckpointError, PresetError
from cfgen.pipeline.naming import slug

FOLDER = Path("videos")


def read(text: str) -> list[Clip]:
    return read_list(text, label="list.yaml", folder=FOLDER, environ={}, slug=slug, recipe=_recipe)


def _recipe(model: str) -> tuple[str, str]:
    """Tells the preset of one model only."""
    if model == "causal.pt":
        return "causal-forcing", "its header says so"
    raise CheckpointError(f"the model {model!r} is not on disk", "pull it")


def refused(text: str) -> str:
    with pytest.raises(PresetError) as caught:
        read(text)
    return str(caught.value)


def test_a_list_with_defaults_and_both_kinds_of_clips() -> None:
    clips = read(
        """\
version: 1
defaults:
  duration: 20s
  seed: 7
  memory: {policy: window, size: 12}
clips:
  - a red balloon, over hills
  - name: kite
    prompt: a yellow kite
    seed: 12
    duration: 1:05
    memory: {sink: 2}
    output: "night/{name}-{seed}.mp4"
"""
    )
    first, second = clips
    assert (first.name, first.where) == ("a-red-balloon-over-hills", "list.yaml:7")
    assert first.config.prompt == "a red balloon, over hills"
    assert first.config.seed == clip_seed("7", "a-red-balloon-over-hills")
    assert first.config.duration_s == 20
    assert first.config.output == FOLDER / "a-red-balloon-over-hills.mp4"
    assert (second.name, second.config.seed, second.config.duration_s) == ("kite", 12, 65)
    assert second.config.memory.sink == 2
    assert second.config.memory.size == 12
    assert second.config.output == FOLDER / "night" / "kite-12.mp4"


def test_a_clip_without_an_output_ends_as_its_format_does() -> None:
    clips = read(
        """version: 1
defaults: {encode: {format: mkv}}
clips:
  - a kite
  - {prompt: a boat, encode: {format: gif}}
  - {prompt: a star, encode: {format: auto}}
"""
    )
    assert [clip.config.output.name for clip in clips if clip.config.output] == [
        "a-kite.mkv",
        "a-boat.gif",
        "a-star.mp4",
    ]


def test_a_sound_may_be_written_short() -> None:
    clips = read(
        """version: 1
defaults: {audio: {file: sea.wav, offset: 2s}}
clips:
  - a kite
  - {prompt: a boat, audio: wind.wav}
  - {prompt: a star, audio: {file: "null", offset: "null"}}
"""
    )
    assert [(clip.config.audio.file, clip.config.audio.offset_s) for clip in clips] == [
        ((FOLDER / "sea.wav").absolute(), 2),
        ((FOLDER / "wind.wav").absolute(), 2),
        (None, None),
    ]
    with pytest.raises(PresetError, match=r"list.yaml:2: audio.file: is given twice"):
        read("version: 1\nclips: [{prompt: x, audio: a.wav, audio: b.wav}]\n")


def test_an_output_that_does_not_end_as_its_format_is_refused_with_its_line() -> None:
    with pytest.raises(PresetError, match=r"list.yaml:3.*is mkv, but the output is a.mp4"):
        read("version: 1\nclips:\n- {prompt: x, output: a.mp4, encode: {format: mkv}}\n")


def test_each_clip_has_the_preset_of_its_model() -> None:
    first, second, third = read(
        """version: 1
defaults: {model: {path: causal.pt}}
clips:
  - a kite
  - {prompt: a boat, model: {path: mini}, preset: mini}
  - {prompt: a star, preset: longlive}
"""
    )
    assert [clip.config.preset for clip in (first, second, third)] == [
        "causal-forcing",
        "mini",
        "longlive",
    ]
    assert first.config.model.path == third.config.model.path == "causal.pt"


def test_models_that_tell_no_preset_are_named_with_their_clips() -> None:
    said = refused(
        "version: 1\nclips:\n- {prompt: a, model: {path: lost}}\n- {prompt: b, seed: x}\n"
        "- {prompt: c, model: {path: gone}}"
    )
    for line in (
        "list.yaml:3: model.path: the model 'lost' is not on disk (pull it)",
        "list.yaml:4: seed: must be a whole number",
        "list.yaml:5: model.path: the model 'gone' is not on disk",
    ):
        assert line in said


def test_the_seed_depends_on_the_list_and_the_name_alone() -> None:
    alone = read("version: 1\nclips: [{name: b, prompt: x}]")[0].config.seed
    among = {c.name: c.config.seed for c in read("version: 1\nclips: [a, {name: b, prompt: y}]")}
    assert among["b"] == alone == clip_seed("0", "b")
    assert among["a"] != alone
    assert clip_seed("1", "b") != alone
    assert 0 <= alone < 2**31


def test_a_prompt_a_line() -> None:
    clips = read("# tonight\na red kite\n\n  a blue boat  \n")
    assert [clip.config.prompt for clip in clips] == ["a red kite", "a blue boat"]
    assert [clip.where for clip in clips] == ["list.yaml:2", "list.yaml:4"]


def test_musubi_lines_are_taken_where_they_mean_the_same() -> None:
    (clip,) = read("a red kite, at night --w 320 --h 192 --f 81 --d 42")
    assert clip.config.prompt == "a red kite, at night"
    assert (clip.config.size, clip.config.seed) == ((320, 192), 42)
    assert round(clip.config.duration_s * clip.config.playback_fps) == 81
    for line, reason in [
        ("a kite --s 20", "--s 20 has no counterpart in cfgen"),
        ("a kite --n ugly, blurry", "--n ugly, blurry has no counterpart"),
        ("a kite --w 160", "--w and --h belong together"),
        ("a kite --d x", "--d x has no counterpart"),
    ]:
        assert reason in refused(line)


def test_longlive_lines_are_taken_where_they_mean_the_same() -> None:
    (clip,) = read('{"prompts_list": ["a red kite"]}\n')
    assert clip.config.prompt == "a red kite"
    (film,) = read('{"prompts_list": ["a red kite", "a boat", "a cube"]}\n')
    assert [str(shot) for shot in film.config.shots] == [
        "10s: a red kite",
        "10s recache: a boat",
        "10s recache: a cube",
    ]
    assert film.name == "a-red-kite-a-boat-a-cube"
    assert film.config.duration_s == 30
    assert "nothing else" in refused('{"prompts_list": ["a"], "cut": true}')
    assert "is not a line of JSON" in refused('{"prompts_list": ["a"]}\n{nope')


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "there is no clip in the list"),
        ("version: 1\nclips: []", "there is no clip in the list"),
        ("version: 1\nclips:", "clips: must be a list of clips"),
        ("clips: [a]", "version: must be 1"),
        ("version: 2\nclips: [a]", "version: must be 1, got '2'"),
        (
            "version: 1\nclip: [a]",
            "list.yaml:2: clip: is not a key of a list; did you mean",
        ),
        ("version: 1\nclips: [a, a]", "is also the name of the clip at list.yaml:2"),
        (
            "version: 1\nclips:\n- {prompt: a, sed: 3}",
            "list.yaml:3: sed: is not a known key",
        ),
        ("version: 1\nclips:\n- a\n- {prompt: b, seed: x}", "list.yaml:4: seed: must be a whole"),
        ("version: 1\nclips:\n- {name: n, prompt: ''}", "list.yaml:3: prompt: is empty"),
        ("version: 1\nclips:\n- [a]", "list.yaml:3: clips: a clip is a text or a mapping"),
        ("version: 1\nclips:\n- {name: a/b, prompt: x}", "name: must hold no /"),
        ("version: 1\nclips:\n- {name: .., prompt: x}", "name: must be a name, got '..'"),
        ("version: 1\nclips:\n- {name: NUL, prompt: x}", "is no file name on every system"),
        (f"version: 1\nclips:\n- {{name: {'ö' * 90}, prompt: x}}", "at most 100 bytes"),
        ('version: 1\nclips:\n- {name: "a\\0b", prompt: x}', "nothing unprintable"),
        ("version: 1\nclips:\n- {prompt: x, output: ../a.mp4}", "must stay in the folder"),
        ("version: 1\nclips:\n- {prompt: x, output: /a.mp4}", "must stay in the folder"),
        ("version: 1\nclips:\n- {prompt: x, output: a.avi}", "must end in .mp4"),
        ("version: 1\nclips:\n- {prompt: x, output: '{index}.mp4'}", "knows the fields name"),
        ("version: 1\nclips:\n- {prompt: x, output: '{name.mp4'}", "output: "),
        ("version: 1\nclips: [a", "is not valid YAML"),
    ],
)
def test_what_is_wrong_is_told_with_its_line(text: str, reason: str) -> None:
    assert reason in refused(text)


def test_all_that_is_wrong_is_told_at_once() -> None:
    said = refused(
        "version: 1\nclips:\n- {prompt: a, seed: x}\n- {prompt: b, size: 1x1}\n- {sed: 1}"
    )
    for where in ("list.yaml:3: seed", "list.yaml:4: size", "list.yaml:5: sed"):
        assert where in said


words = st.text(max_size=12) | st.sampled_from(
    ["..", "../x", "/etc/x", "CON", "a" * 300, "\0", "{name}", "{0}", "1:05", "~", "null", "ä"]
)
keys = st.sampled_from(["name", "prompt", "seed", "duration", "output", "memory", "size"]) | words
values = st.recursive(
    words | st.integers() | st.none(), lambda inner: st.lists(inner) | st.dictionaries(keys, inner)
)


@settings(deadline=None, max_examples=80)
@given(st.dictionaries(st.sampled_from(["version", "defaults", "clips"]) | words, values))
def test_any_yaml_is_read_or_refused(tree: dict[str, object]) -> None:
    import yaml

    check(yaml.safe_dump({"version": 1, **tree}, allow_unicode=True))


@settings(deadline=None, max_examples=150)
@given(st.lists(st.dictionaries(keys, words | st.integers(), min_size=1), min_size=1, max_size=3))
def test_any_clips_are_read_or_refused(clips: list[dict[str, object]]) -> None:
    import yaml

    check(yaml.safe_dump({"version": 1, "clips": clips}, allow_unicode=True))


@settings(deadline=None, max_examples=150)
@given(st.text(max_size=200))
def test_any_text_is_read_or_refused(text: str) -> None:
    check(text)


def check(text: str) -> None:
    try:
        clips = read(text)
    except PresetError:
        return
    for clip in clips:
        assert clip.config.output is not None
        path = clip.config.output
        assert path.parts[0] == "videos"
        assert ".." not in path.parts
        assert path.suffix.lower() == ".mp4"
        assert all(len(part.encode()) <= 104 and "\0" not in part for part in path.parts)


@pytest.mark.skipif(not hasattr(os, "symlink"), reason="links as POSIX has them")
def test_a_linked_folder_does_not_lead_the_output_outside(tmp_path: Path) -> None:
    (tmp_path / "outside").mkdir()
    (tmp_path / "lists").mkdir()
    (tmp_path / "lists" / "out").symlink_to(tmp_path / "outside")
    text = "version: 1\ndefaults:\n  output: out/{name}.mp4\nclips:\n  - {prompt: a fox}\n"
    with pytest.raises(PresetError, match="must stay in the folder of the list"):
        read_list(
            text,
            label="list.yaml",
            folder=tmp_path / "lists",
            environ={},
            slug=slug,
            recipe=_recipe,
        )

from __future__ import annotations

import json
import shutil
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path

import pytest
from typer.testing import Result

from cfgen.errors import BudgetError, WriterError

Run = Callable[..., Result]


def _left_behind() -> list[str]:
    return sorted(str(path) for path in Path().rglob("*"))


def test_a_render_prints_the_path_and_nothing_else_on_stdout(cfgen: Run, build) -> None:
    result = cfgen("render", "a red balloon", "--duration", "3s", "-o", "a.mp4", "--seed", "7")
    assert result.exit_code == 0
    assert result.stdout == "a.mp4\n"
    (config,) = build.configs
    assert (config.prompt, config.seed, config.duration_s) == ("a red balloon", 7, 3)


def test_off_a_terminal_progress_is_one_line_a_chunk(cfgen: Run, build) -> None:
    result = cfgen("render", "a boat", "--duration", "3s", "-o", "a.mp4", "--seed", "7")
    chunks = [line for line in result.stderr.splitlines() if line.startswith("chunk")]
    assert chunks == [
        "chunk 1 of 5, 0.6 of 3.0 s",
        "chunk 2 of 5, 1.3 of 3.0 s, 12.0 frames/s, ETA 0:02",
        "chunk 3 of 5, 2.1 of 3.0 s, 12.0 frames/s, ETA 0:01",
        "chunk 4 of 5, 2.8 of 3.0 s, 12.0 frames/s, ETA 0:00",
        "chunk 5 of 5, 3.0 of 3.0 s, 9.8 frames/s, ETA 0:00",
    ]
    assert "48 frames, 3.0 s of video in 4.0 s" in result.stderr


def test_quiet_leaves_result_and_warnings(cfgen: Run, build) -> None:
    build.warns = True
    result = cfgen("render", "a zebra", "--duration", "3s", "-o", "a.mp4", "-q")
    assert result.stdout == "a.mp4\n"
    assert result.stderr == (
        "warning: mini has never seen the word 'zebra'\nhint: it knows 'boat'\n"
    )


def test_verbose_tells_the_origin_of_values(cfgen: Run, build) -> None:
    result = cfgen("render", "a boat", "--duration", "3s", "-o", "a.mp4", "-v")
    assert "duration = 3.0  (flag --duration)" in result.stderr
    assert "memory.slow = 12  (preset mini:3)" in result.stderr
    assert "48 frames need 13 latent frames" in result.stderr


def test_json_is_lines_with_a_schema_and_one_envelope_at_the_end(cfgen: Run, build) -> None:
    build.warns = True
    result = cfgen("render", "a zebra", "--duration", "3s", "-o", "a.mp4", "--json")
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    assert {line["schema"] for line in lines} == {"cfgen.events/1"}
    kinds = [line["type"] for line in lines]
    assert kinds == ["plan", "load", "warning", *["chunk"] * 5, "encode", "done", "envelope"]
    chunk, last = lines[4], lines[-1]
    assert (chunk["index"], chunk["frames_done"], chunk["memory"]) == (1, 21, {"pages": 21})
    assert last["ok"] is True
    assert last["error"] is None
    assert last["data"]["frames"] == 48
    assert last["data"]["output"] == str(Path("a.mp4").absolute())


def test_what_is_worth_knowing_of_the_model_is_told_a_line_each(cfgen: Run, build) -> None:
    given = ["render", "a boat", "--duration", "1s", "-o", "a.mp4"]
    lines = cfgen(*given).stderr.splitlines()
    loaded = lines.index("model mini loaded in 0.5 s, torch on cpu")
    assert lines[loaded + 1 : loaded + 3] == [
        "licence: for tests",
        "about 0.5 GB of memory at most",
    ]
    events = [json.loads(line) for line in cfgen(*given, "-y", "--json").stdout.splitlines()]
    (load,) = [event for event in events if event["type"] == "load"]
    assert load["details"] == lines[loaded + 1 : loaded + 3]


def test_models_and_placement_have_flags(cfgen: Run, build, presets: Path) -> None:
    model = str(presets / "mini")
    given = ["-m", model, "--vae", "v.pth", "--text-encoder", "t", "--tokenizer", "s"]
    given += ["--lora", "b.pt:0.5", "--lora", "a.pt", "--commit-reads", "fast"]
    result = cfgen("render", "a boat", *given, "--offload", "all", "--vram", "12G", "-o", "a.mp4")
    assert result.exit_code == 0, result.stderr
    (config,) = build.configs
    parts = config.model
    assert (parts.path, parts.vae, parts.text_encoder, parts.tokenizer) == (
        *(model, "v.pth"),
        *("t", "s"),
    )
    assert parts.loras == ("b.pt:0.5", "a.pt")
    assert config.memory.commit_reads == "fast"
    assert (config.placement.offload, config.placement.vram) == ("all", 12 * 10**9)
    assert "preset mini, weights (its header says so)" in result.stderr


def test_without_output_the_name_comes_from_prompt_and_seed(cfgen: Run, build) -> None:
    result = cfgen("render", "A Red Balloon, at dusk!", "--seed", "7", "--duration", "1s")
    assert result.stdout == "a-red-balloon-at-dusk-7.mp4\n"


def test_without_seed_one_is_chosen_and_told(cfgen: Run, build) -> None:
    result = cfgen("render", "a boat", "--duration", "1s", "-o", "a.mp4")
    seed = build.configs[0].seed
    assert 0 <= seed < 2**31
    assert f"seed {seed} (chosen at random; --seed {seed} repeats it)" in result.stderr


def test_a_dash_reads_the_prompt_from_stdin(cfgen: Run, build) -> None:
    result = cfgen("render", "-", "--duration", "1s", "-o", "a.mp4", stdin="a boat\non the sea\n")
    assert result.exit_code == 0
    assert build.configs[0].prompt == "a boat on the sea"


def test_the_prompt_may_stand_in_the_run_file(cfgen: Run, build) -> None:
    Path("run.yaml").write_text("prompt: a boat\nduration: 1s\noutput: b.mp4\n")
    assert cfgen("render", "--config", "run.yaml").stdout == "b.mp4\n"
    assert build.configs[0].prompt == "a boat"


def test_yes_overwrites(cfgen: Run, build) -> None:
    Path("a.mp4").write_bytes(b"old")
    result = cfgen("render", "a boat", "--duration", "1s", "-o", "a.mp4", "-y")
    assert result.exit_code == 0
    assert Path("a.mp4").read_bytes() == b"video"


def test_dry_run_checks_and_plans_and_builds_nothing(cfgen: Run, build) -> None:
    result = cfgen("render", "a boat", "--duration", "30s", "-o", "a.mp4", "--dry-run")
    assert result.exit_code == 0
    assert "30 s at 16 fps are 480 frames exactly" in result.stdout
    assert build.configs == []
    assert _left_behind() == []


POOR = """#!/bin/sh
case "$*" in
  *-version*) echo "ffmpeg version 7.0 Copyright"; exit 0;;
  *-encoders*) echo " ------"; echo " V....D libx264  H.264"; echo " V....D ffv1  FFV1"; exit 0;;
  *-filters*) echo " ... palettegen  V->V  Find the palette."; exit 0;;
esac
"""

LACKING = {
    "codec": (["--codec", "h265"], "built without the encoder libx265", ".mp4 goes with --codec h"),
    "format": (["--format", "webm"], "built without the encoder libvpx-vp9", "set CFGEN_FFMPEG to"),
    "filter": (["--interpolate", "48"], "built without the filter minterpolate", "minterpolate"),
    "gif": (["--format", "gif"], "built without the encoder gif", "set CFGEN_FFMPEG to"),
}


@pytest.mark.parametrize("dry_run", [True, False])
@pytest.mark.parametrize(("flags", "lacks", "hint"), LACKING.values(), ids=LACKING)
def test_what_ffmpeg_cannot_encode_is_told_before_anything_loads(
    flags: list[str],
    lacks: str,
    hint: str,
    dry_run: bool,
    cfgen: Run,
    build,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    poor = tmp_path / "poor-ffmpeg"
    poor.write_text(POOR)
    poor.chmod(0o755)
    monkeypatch.setenv("CFGEN_FFMPEG", str(poor))
    result = cfgen("render", "a boat", *flags, *(["--dry-run"] if dry_run else []))
    assert result.exit_code == 3
    assert lacks in result.stderr
    assert hint in result.stderr
    assert build.configs == []
    assert _left_behind() == []


@pytest.mark.parametrize(
    ("arguments", "exit_code", "sentence"),
    [
        ([], 2, "error: the prompt is empty"),
        ([""], 2, "error: the prompt is empty"),
        (["  \n"], 2, "error: the prompt is empty"),
        (["a", "--preset", "mnii"], 2, "there is no preset 'mnii'; did you mean 'mini'?"),
        (["a", "--set", "memory.slwo=3"], 2, "memory.slwo: is not a known key; did you mean"),
        (["a", "--set", "seed"], 2, "must be written key=value"),
        (["a", "--duration", "0"], 2, "--duration: a duration must be longer than 0 seconds"),
        (["a", "--duration", "-3"], 2, "--duration: a duration must be longer than 0 seconds"),
        (["a", "--duration", "abc"], 2, "--duration: 'abc' is not a duration"),
        (["a", "--duration", "0.01"], 2, "0.01 s is shorter than one frame at 16 fps"),
        (["a", "--size", "100x96"], 2, "was not trained for 100x96; it knows 160x96, 256x144"),
        (["a", "--size", "161x96"], 2, "was not trained for 161x96"),
        (["a", "--size", "big"], 2, "--size: 'big' is not a size"),
        (["a", "--fps", "0"], 2, "--fps: must be at least 1 and at most 240, got 0.0"),
        (["a", "--seed", "x"], 2, "--seed: must be a whole number, got 'x'"),
        (["a", "--seed", "-2"], 2, "--seed: must be at least 0"),
        (["a", "--memory", "windw"], 2, "--memory: must be one of full, window, slow_fast"),
        (["a", "--rng", "dice"], 2, "--rng: must be keyed or reference, got 'dice'"),
        (["a", "--config", "no.yaml"], 2, "no.yaml: there is no such file"),
        (["a", "--bogus"], 2, "No such option"),
        (["a", "b"], 2, "Put the prompt in quotes"),
        (["a", "-o", "a.avi"], 2, "must end in .mp4"),
        (["a", "-o", "no/a.mp4"], 3, "does not exist"),
        (["a", "-o", "a.webm", "--codec", "h264"], 2, ".webm files do not carry h264"),
        (["a", "--quality", "99"], 2, "the constant rate factor of H.264 lies between 1"),
        (["a", "--quality", "fine"], 2, "must be draft, good, best or a constant rate factor"),
        (["a", "--interpolate", "12"], 2, "interpolated to more than the 16 a second"),
        (["a", "--interpolate", "24", "--bits", "10", "--codec", "av1"], 2, "has 8 bits"),
        (["a", "--format", "gif", "--interpolate", "60"], 2, "50 frames a second at most"),
        (["a", "--audio", "no.wav"], 3, "no.wav: No such file"),
        (["a", "--audio-loop"], 2, "belongs to a sound, and none is given"),
        (["a", "--set", "model.path=nowhere"], 3, "the model 'nowhere' is not on disk"),
        (["a", "-m", "nowhere"], 3, "the model 'nowhere' is not on disk"),
        (["a", "--offload", "most"], 2, "--offload: must be auto, none, blocks or all, got 'most'"),
        (["a", "--vram", "much"], 2, "--vram: 'much' is not"),
        (
            ["a", "--commit-reads", "most"],
            2,
            "--commit-reads: must be all, fast or newest:K, got 'most'",
        ),
    ],
)
def test_bad_input_gets_one_sentence_and_leaves_nothing(
    cfgen: Run, build, arguments: list[str], exit_code: int, sentence: str
) -> None:
    result = cfgen("render", *arguments)
    assert result.exit_code == exit_code
    assert sentence in result.stderr
    assert result.stderr.lower().count("error:") == 1
    assert "Traceback" not in result.stderr
    assert result.stdout == ""
    assert build.configs == []
    assert _left_behind() == []


@pytest.mark.parametrize("taken", ["a.mp4", "a.mp4.json"])
def test_an_existing_file_is_refused_and_kept(cfgen: Run, build, taken: str) -> None:
    Path(taken).write_bytes(b"old")
    result = cfgen("render", "a boat", "-o", "a.mp4")
    assert result.exit_code == 3
    assert f"error: {taken} exists already\nhint: overwrite it with -y" in result.stderr
    assert Path(taken).read_bytes() == b"old"
    assert _left_behind() == [taken]
    assert build.configs == []


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="needs a folder that even root cannot write")
def test_a_folder_that_cannot_be_written_is_found_before_work(cfgen: Run, build) -> None:
    result = cfgen("render", "a boat", "-o", "/proc/a.mp4")
    assert result.exit_code == 3
    assert "error: cannot write '/proc/a.mp4'" in result.stderr
    assert build.configs == []


def test_a_folder_in_the_place_of_the_output_is_refused(cfgen: Run, build) -> None:
    Path("a.mp4").mkdir()
    result = cfgen("render", "a boat", "-o", "a.mp4", "-y")
    assert result.exit_code == 3
    assert "is a folder, not a file" in result.stderr


def test_a_disk_too_small_is_found_before_work(
    cfgen: Run, build, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9, 1000))
    result = cfgen("render", "a boat", "-o", "a.mp4")
    assert result.exit_code == BudgetError.exit_code
    assert "has 1.0 kB free and the render needs about" in result.stderr
    assert "hint: free some space" in result.stderr
    assert build.configs == []


def test_ctrl_c_ends_with_130_and_one_sentence(cfgen: Run, build) -> None:
    build.fails_with = KeyboardInterrupt()
    result = cfgen("render", "a boat", "-o", "a.mp4", "-q")
    assert result.exit_code == 130
    assert result.stderr == "error: interrupted before the work was finished\n"
    assert _left_behind() == []


def test_a_known_error_gives_its_exit_code_and_json_code(cfgen: Run, build) -> None:
    build.fails_with = WriterError("ffmpeg failed", exit_status=187, stderr_tail=["broken pipe"])
    result = cfgen("render", "a boat", "-o", "a.mp4", "--json")
    assert result.exit_code == 1
    envelope = json.loads(result.stdout.splitlines()[-1])
    assert envelope["ok"] is False
    assert envelope["error"]["code"] == "writer"
    assert "exit status 187" in envelope["error"]["message"]
    assert "broken pipe" in result.stderr


def test_an_unknown_error_keeps_its_traceback_and_asks_for_a_report(cfgen: Run, build) -> None:
    build.fails_with = ZeroDivisionError("somewhere deep")
    result = cfgen("render", "a boat", "-o", "a.mp4")
    assert result.exit_code == 1
    assert "ZeroDivisionError: somewhere deep" in result.stderr
    assert "please report it" in result.stderr.splitlines()[-1]


def test_debug_keeps_the_traceback_of_a_known_error(cfgen: Run, build) -> None:
    result = cfgen("render", "a boat", "--duration", "abc", "--debug")
    assert result.exit_code == 2
    assert "Traceback" in result.stderr
    assert "error: --duration: 'abc' is not a duration" in result.stderr


def test_an_error_is_an_envelope_too(cfgen: Run, build) -> None:
    result = cfgen("render", "a boat", "--duration", "abc", "--json")
    assert result.exit_code == 2
    (line,) = result.stdout.splitlines()
    assert json.loads(line)["error"]["code"] == "preset"

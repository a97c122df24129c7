from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import typer
from typer.testing import Result

from cfgen import __version__
from cfgen.cli import doctor as doctor_module
from cfgen.cli.app import app
from cfgen.cli.doctor import Finding

Run = Callable[..., Result]


def _commands(command: object, path: str = "") -> Iterator[tuple[str, object]]:
    inner = getattr(command, "commands", None)
    if path:
        yield path, command
    names = command.list_commands(None) if inner is not None else []
    for name in names:
        if (path, name) != ("", "train"):  # its flags are the training part's own
            yield from _commands(command.get_command(None, name), f"{path} {name}".strip())


def test_the_flags_of_every_command_are_the_ones_agreed(
    golden_text: Callable[[str, str], None],
) -> None:
    lines = []
    for path, command in _commands(typer.main.get_command(app)):
        flags = [name for param in command.params for name in param.opts]
        lines.append(f"{path}: {' '.join(sorted(flags))}")
    golden_text("cli_flags.txt", "\n".join(lines) + "\n")


def test_help_names_the_commands_and_fits_80_columns(cfgen: Run) -> None:
    top = cfgen("--help")
    assert top.exit_code == 0
    for command in ("render", "plan", "presets", "doctor"):
        assert f"\n  {command} " in top.stdout
        page = cfgen(command, "--help")
        assert page.exit_code == 0
        assert "Usage:" in page.stdout
        assert max(map(len, page.stdout.splitlines())) <= 80
    assert max(map(len, top.stdout.splitlines())) <= 80
    assert 'cfgen render "a red balloon' in top.stdout


def test_version_is_told(cfgen: Run) -> None:
    assert cfgen("--version").stdout == f"cfgen {__version__}\n"


def test_an_unknown_command_is_a_usage_error(cfgen: Run) -> None:
    result = cfgen("rendr")
    assert result.exit_code == 2
    assert "No such command 'rendr'" in result.stderr


def test_plan_shows_roundings_needs_and_chunks(cfgen: Run) -> None:
    result = cfgen("plan", "--duration", "1.03s", "--set", "dtype=float32")
    assert result.exit_code == 0
    assert result.stderr == ""
    text = result.stdout
    assert "1.03 s at 16 fps are 16.48 frames, rounded to 16 frames (1 s)" in text
    assert re.search(r"^memory    about [0-9.]+ MB on a CPU; the parts are$", text, re.MULTILINE)
    assert "kv cache 299.5 kB" in text  # 2 * 2 layers * 24 * 60 tokens * (2 * 6 + 1) * 4 B
    assert re.search(
        r"^on a GPU  by --offload: none .*, blocks .*, all .* \(estimates\)$", text, re.MULTILINE
    )
    assert "about 0:00 on two CPU cores (32 frames/s measured there)" in text
    assert text.splitlines()[-2:] == [
        "    1  0-8               0.000-0.562         0-2                  1",
        "    2  9-15              0.562-1.000         3-5                  1",
    ]


def test_plan_says_what_another_playback_rate_does(cfgen: Run) -> None:
    text = cfgen("plan", "--duration", "10s", "--fps", "24").stdout
    assert "10 s at 24 fps are 240 frames exactly" in text
    assert "made for 16 fps, so it plays 1.5 times as fast" in text


def test_a_long_plan_is_shortened_unless_verbose(cfgen: Run) -> None:
    short = cfgen("plan", "--duration", "10m").stdout
    assert "  ...  789 more chunks; -v lists all" in short
    assert short.splitlines()[-1].startswith("  801  9597-9599")
    assert len(cfgen("plan", "--duration", "10m", "-v").stdout.splitlines()) > 800


def test_plan_json_holds_every_chunk(cfgen: Run) -> None:
    (line,) = cfgen("plan", "--duration", "10m", "--json").stdout.splitlines()
    data = json.loads(line)["data"]
    assert (data["frames"], data["chunks"], len(data["table"])) == (9600, 801, 801)
    assert sum(chunk["frames"] for chunk in data["table"]) == 9600


def test_a_plan_tells_passes_and_those_of_the_first_chunk(cfgen: Run) -> None:
    steps = ["--set", "schedule.timesteps=[1000]", "--set", "schedule.guidance=1"]
    assert (
        "passes    2 for a chunk, the one that commits it included\n"
        in cfgen("plan", *steps).stdout
    )
    steps += ["--set", "schedule.first_timesteps=[1000, 750, 500, 250]"]
    assert "included; 5 for the first chunk\n" in cfgen("plan", *steps).stdout
    data = json.loads(cfgen("plan", *steps, "--json").stdout)["data"]
    assert data["passes"] == {"first": 5, "others": 2}


@pytest.mark.parametrize(
    ("policy", "pages"),
    [("full", 124), ("window", 22), ("slow_fast", 22), ("recency", 25), ("relax", 121)],
)
def test_memory_in_a_plan_follows_the_policy(cfgen: Run, policy: str, pages: int) -> None:
    asked = ["--duration", "30s", "--memory", policy, "--set", "dtype=float32"]
    data = json.loads(cfgen("plan", *asked, "--json").stdout)["data"]
    nbytes = 2 * 2 * 24 * 60 * pages * 4
    assert data["estimate"]["kv_nbytes"] == data["memory"]["parts"]["kv_cache"] == nbytes
    assert data["memory"]["ram_nbytes"] > nbytes
    assert list(data["memory"]["vram_nbytes"]) == ["none", "blocks", "all"]


@pytest.mark.parametrize(
    ("lost", "reason"),
    [
        ("tae.safetensors", "unknown: no video autoencoder lies in {}; name one with --vae PATH"),
        ("diffusion_pytorch_model.safetensors", "unknown: {} holds no file of weights"),
    ],
)
def test_plan_says_what_it_cannot_know(cfgen: Run, presets: Path, lost: str, reason: str) -> None:
    (presets / "mini" / lost).unlink()
    arguments = ["plan", "--set", "model.cpu_frames_per_s=null"]
    text = cfgen(*arguments).stdout
    assert f"memory    {reason.format(presets / 'mini')}" in text
    assert "unknown: this model was never timed" in text
    data = json.loads(cfgen(*arguments, "--json").stdout)["data"]
    assert data["memory"] is None
    assert (data["estimate"]["kv_nbytes"] is None) == lost.startswith("diffusion")
    assert data["frames"] == 160


def test_presets_are_listed_with_their_descriptions(cfgen: Run) -> None:
    assert cfgen("presets", "list").stdout == "mini  for tests\n"
    data = json.loads(cfgen("presets", "list", "--json").stdout)["data"]
    assert data == {"presets": {"mini": "for tests"}}


def test_a_preset_is_shown_with_origins(cfgen: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CFGEN_FPS", "24")
    result = cfgen("presets", "show", "mini", "--set", "memory.tau=0.9")
    rows = {line.split()[0]: line.split(maxsplit=2)[1:] for line in result.stdout.splitlines()}
    assert rows["fps"] == ["24", "environment CFGEN_FPS"]
    assert rows["memory.tau"] == ["0.9", "flag --set memory.tau"]
    assert rows["memory.slow"] == ["12", "preset mini:3"]
    assert rows["seed"] == ["null", "default"]
    assert len(rows["digest"][0]) == 64


def test_showing_an_unknown_preset_names_the_nearest(cfgen: Run) -> None:
    result = cfgen("presets", "show", "mnii")
    assert result.exit_code == 2
    assert "there is no preset 'mnii'; did you mean 'mini'?" in result.stderr


@pytest.mark.parametrize(("state", "exit_code"), [("ok", 0), ("note", 0), ("bad", 3)])
def test_doctor_exits_by_what_it_finds(
    cfgen: Run, monkeypatch: pytest.MonkeyPatch, state: str, exit_code: int
) -> None:
    found = Finding(
        part="ffmpeg", state=state, found="none", meaning="no video", advice="install one"
    )
    monkeypatch.setattr(doctor_module, "_LOOKS", (lambda: iter([found]),))
    result = cfgen("doctor")
    assert result.exit_code == exit_code
    lines = result.stdout.splitlines()
    assert lines[0].split() == [state, "ffmpeg", "none"]
    assert lines[1].strip() == "no video"
    assert lines[2].strip() == "-> install one"
    data = json.loads(cfgen("doctor", "--json").stdout)["data"]
    assert data["ready"] is (exit_code == 0)


def test_doctor_looks_at_everything(cfgen: Run) -> None:
    result = cfgen("doctor", "--json")
    parts = [finding["part"] for finding in json.loads(result.stdout)["data"]["findings"]]
    assert parts == [
        "python",
        "torch",
        "threads",
        "bf16",
        "gpu",
        "triton",
        "ffmpeg",
        "formats",
        "model",
        "disk",
    ]
    assert result.exit_code == 0


def test_doctor_finds_a_missing_ffmpeg(cfgen: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CFGEN_FFMPEG", "no-such-ffmpeg")
    result = cfgen("doctor")
    assert result.exit_code == 3
    assert "no-such-ffmpeg" in result.stdout
    assert result.stdout.splitlines()[-1].startswith("not ready: see ")


def test_doctor_finds_a_model_without_weights(cfgen: Run, presets: Path) -> None:
    (presets / "mini" / "diffusion_pytorch_model.safetensors").unlink()
    result = cfgen("doctor")
    assert result.exit_code == 3
    said = f"mini is damaged: {presets / 'mini'} holds no file of weights"
    assert re.search(rf"^bad +model +{re.escape(said)}", result.stdout, re.MULTILINE)
    assert "other preset" not in result.stdout


def test_doctor_tells_once_of_a_damaged_model_that_several_presets_have(
    cfgen: Run, presets: Path
) -> None:
    (presets / "also.yaml").write_text("description: the same\nextends: mini\n")
    (presets / "mini" / "diffusion_pytorch_model.safetensors").unlink()
    result = cfgen("doctor")
    assert result.exit_code == 3
    assert result.stdout.count("is damaged") == 1
    assert "other preset" not in result.stdout


def test_doctor_lists_presets_whose_weights_are_to_be_fetched(cfgen: Run, presets: Path) -> None:
    model = "model: {path: owner/big/wan.safetensors, sizes: [832x480]}"
    for name in ("big", "huge"):
        (presets / f"{name}.yaml").write_text(f"description: elsewhere\n{model}\n")
    result = cfgen("doctor", "--json")
    assert result.exit_code == 0
    findings = json.loads(result.stdout)["data"]["findings"]
    mini, others = [finding for finding in findings if finding["part"] == "model"]
    assert mini["found"].startswith("mini, ")
    assert (others["state"], others["meaning"]) == ("ok", "big, huge")
    assert others["found"] == "weights of 2 other presets are not on this machine"
    assert "`cfgen models pull NAME`" in others["advice"]


WAITING = """
import sys, time
class Stdin:
    def read(self, *limit):
        sys.stderr.write('waiting\\n')
        sys.stderr.flush()
        time.sleep(60)
sys.stdin = Stdin()
"""


def _start(arguments: list[str], cwd: Path, *, before: str = "") -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", f"{before}\nfrom cfgen.cli.app import main; main()", *arguments],
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize(("number", "exit_code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_the_command_with_its_exit_code(
    tmp_path: Path, number: int, exit_code: int
) -> None:
    with _start(["render", "-"], tmp_path, before=WAITING) as process:
        assert process.stderr is not None
        assert process.stderr.readline() == "waiting\n"
        process.send_signal(number)
        stdout, stderr = process.communicate(timeout=20)
    assert process.returncode == exit_code
    assert stdout == ""
    assert stderr.startswith("error: ")
    assert len(stderr.splitlines()) == 1


def test_a_reader_that_leaves_early_is_no_error(tmp_path: Path) -> None:
    arguments = ["plan", "--duration", "10h", "-v"]
    with _start(arguments, tmp_path) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == ""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
@pytest.mark.parametrize("options", [(), ("--json",)])
def test_a_full_stdout_is_one_sentence(options: tuple[str, ...]) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "cfgen", "presets", "list", *options],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        "error: stdout cannot be written to: No space left on device",
        "hint: free some space where it goes, then run the command again",
    ]


def test_a_plan_counts_the_snapshots_of_a_small_cache(cfgen: Run) -> None:
    flags = ("--set", "dtype=bfloat16", "--json")  # int8 keeps values as they are computed
    told = {
        kept: json.loads(cfgen("plan", "--kv-cache", kept, *flags).stdout)["data"]["estimate"]
        for kept in ("bf16", "int8", "fp8")
    }
    for kept, less in (("int8", 0.8), ("fp8", 0.6)):
        for name in ("kv_nbytes", "snapshots_nbytes"):
            assert 0 < told[kept][name] < less * told["bf16"][name], (kept, name)


def test_doctor_is_not_ready_with_broken_settings(
    cfgen: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "cfgen").mkdir()
    (tmp_path / "cfgen" / "config.yaml").write_text("sed: 3\n")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    result = cfgen("doctor")
    assert result.exit_code == 3
    assert "settings" in result.stdout.splitlines()[-1]
    assert "sed: is not a known key" in result.stdout


@pytest.mark.parametrize(
    "arguments",
    [
        ["--json", "--wat"],
        ["wat", "--json"],
        ["render", "x", "--wat", "--json"],
        ["render", "x", "--json", "--duration"],
        ["render", "x", "--json", "--duration", "soon"],
        ["batch", "l.txt", "--json", "--attempts", "x"],
        ["branch", "--json"],
        ["jobs", "list", "--json", "--wat"],
        ["models", "pull", "--json"],
        ["plan", "--json", "a", "b"],
    ],
)
def test_wrong_arguments_are_told_in_json_too(cfgen: Run, arguments: list[str]) -> None:
    result = cfgen(*arguments)
    assert result.exit_code == 2
    last = json.loads(result.stdout.splitlines()[-1])
    assert last["schema"] == "cfgen.events/1"
    assert (last["type"], last["ok"], last["data"]) == ("envelope", False, None)
    assert last["error"]["code"] in ("usage", "preset")
    assert last["error"]["message"]
    assert result.stderr


def test_wrong_arguments_without_json_leave_stdout_empty(cfgen: Run) -> None:
    assert cfgen("render", "x", "--wat").stdout == ""
    assert cfgen("render", "--wat", "--", "--json").stdout == ""


def test_a_plan_with_a_cache_that_grows_takes_longer(cfgen: Run) -> None:
    told = {
        memory: json.loads(cfgen("plan", "--duration", "2m", "--memory", memory, "--json").stdout)
        for memory in ("full", "slow_fast")
    }
    full, flat = (each["data"]["estimate"] for each in told.values())
    assert full["render_s"] > 1.2 * flat["render_s"]
    assert full["chunk_s"][1] > 1.5 * full["chunk_s"][0]
    text = cfgen("plan", "--duration", "10m", "--memory", "full").stdout
    assert re.search(r"; a chunk takes [0-9.]+ s at first and [0-9.]+ s in the end", text)


def test_a_plan_for_a_model_that_is_not_there_counts_no_zeros(cfgen: Run, presets: Path) -> None:
    (presets / "mini" / "diffusion_pytorch_model.safetensors").unlink()
    text = cfgen("plan").stdout
    assert " 0 B" not in text
    assert "snapshots to resume with, whose size is unknown" in text


@pytest.mark.parametrize("json_lines", [False, True])
def test_a_dry_run_warns_of_words(cfgen: Run, presets: Path, json_lines: bool) -> None:
    facts = {"words": ["a", "kite"], "knows": {"things": "kites"}}
    (presets / "mini" / "mini.json").write_text(json.dumps(facts))
    Path("l.txt").write_text("a zebra\na kite\n")
    options = ["--dry-run", *(["--json"] if json_lines else [])]
    single = cfgen("render", "a zebra", *options)
    assert single.exit_code == 0
    assert "warning: the model has never seen 'zebra' and may ignore it" in single.stderr
    assert "hint: understood as: a …\nit knows:\n  things  kites" in single.stderr
    listed = cfgen("batch", "l.txt", *options)
    assert listed.exit_code == 0
    assert listed.stdout.count("has never seen 'zebra'") == 1

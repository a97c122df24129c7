"""`cfgen train mini` through the command line: refusals, and slices that end in a film."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from safetensors import safe_open
from typer.testing import Result

from cfgen.config import presets as catalog
from cfgen.video.ffmpeg import find_ffmpeg
from cfgen.video.measure import measure

Run = Callable[..., Result]

PRESETS = catalog.presets_folder()

TINY = {
    "vae.encoder_width": "8",
    "vae.decoder_widths": "[8, 8, 8, 8]",
    "vae.width": "64",
    "vae.height": "64",
    "vae.crop": "[32, 32]",
    "vae.frames": "5",
    "vae.films": "1",
    "vae.crops_per_film": "1",
    "base.dim": "24",
    "base.ffn_dim": "32",
    "base.num_heads": "2",
    "base.num_layers": "1",
    "base.text_dim": "16",
    "base.text_layers": "1",
    "base.text_ffn": "16",
    "base.batches": "[1, 1, 1, 1]",
    "base.chunks": "[1, 2, 3, 4]",
    "base.trained": "[1, 1, 1, 1]",
    "base.families": "2",
    "base.members": "1",
    "base.probe_films": "1",
    **{
        f"{stage}.loop.{key}": value
        for stage in ("vae", "base")
        for key, value in {"precision": "no", "log_every": "1", "steps": "4"}.items()
    },
}
"""A model and a schedule so small that a stage is done in a second."""


@pytest.fixture(autouse=True)
def presets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The installed presets, and an empty current folder."""
    monkeypatch.setattr(catalog, "presets_folder", lambda: PRESETS)
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    return PRESETS


pytestmark = pytest.mark.usefixtures("own_accelerator")


@pytest.fixture
def train(cfgen: Run) -> Run:
    """Run `cfgen train mini` for a stage with tiny values, in the folder `work`."""

    def run(stage: str, *arguments: str, **changes: str) -> Result:
        values = TINY | {key.replace("__", "."): value for key, value in changes.items()}
        sets = [part for key, value in values.items() for part in ("--set", f"{key}={value}")]
        return cfgen("train", "mini", "--stage", stage, "--work", "work", *sets, *arguments)

    return run


def _steps(stage: str) -> list[int]:
    lines = Path("work", stage, "log.jsonl").read_text().splitlines()
    return [json.loads(line)["step"] for line in lines]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["mnii", "--stage", "vae"], "nothing to train called 'mnii'; did you mean 'mini'?"),
        (["mini"], "Missing option '--stage'"),
        (["mini", "--stage", "vea"], "mini has no stage 'vea'; did you mean 'vae'?"),
        (["mini", "--stage", "vae", "--minutes", "0"], "Invalid value for '--minutes'"),
        (["mini", "--stage", "vae", "--set", "vae.corp=3"], "vae.corp: is not a known key; did"),
        (["mini", "--stage", "tokenizer", "--set", "vae.corp=3"], "did you mean 'crop'?"),
        (["mini", "--stage", "vae", "--set", "base.loop.stps=3"], "did you mean 'steps'?"),
        (
            ["mini", "--stage", "vae", "--set", "crop=3"],
            "use SECTION.KEY=VALUE, sections: tokenizer, vae",
        ),
        (
            ["mini", "--stage", "vae", "--set", "vae.crop"],
            "use SECTION.KEY=VALUE, sections: tokenizer, vae",
        ),
        (["mini", "--stage", "vae", "--set", "vae.crop=big"], "must be a whole number, got 'big'"),
        (["mini", "--stage", "vae", "--set", "vae.lr=nan"], "must be a finite number, got 'nan'"),
        (["mini", "--stage", "base", "--set", "base.chunks=[2, x]"], "must be a whole number"),
        (["mini", "--stage", "probe", "--set", "probe.policies=[half]"], "got 'half'"),
        (["mini", "--stage", "probe", "--set", "probe.renoise=frsh"], "did you mean 'fresh'?"),
        *(
            (
                ["mini", "--stage", stage, "--start", "begun"],
                f"stage {stage} reads nothing of --start begun: it works on mini-training/model",
            )
            for stage in ("tokenizer", "decoder", "probe")
        ),
    ],
)
def test_what_cannot_be_trained_is_refused(cfgen: Run, arguments: list[str], sentence: str) -> None:
    result = cfgen("train", *arguments)
    assert result.exit_code == 2, result.output
    assert sentence in " ".join(result.stderr.split())
    assert "Traceback" not in result.stderr
    assert list(Path().iterdir()) == []


def test_every_wrong_value_is_told_at_once(cfgen: Run) -> None:
    wrong = ("vae.corp=3", "base.lr=fast", "vae.loop.steps=[]")
    sets = [part for value in wrong for part in ("--set", value)]
    result = cfgen("train", "mini", "--stage", "vae", *sets)
    assert result.exit_code == 2
    assert "has 3 problems" in result.stderr
    assert all(value.partition("=")[0] in result.stderr for value in wrong)


def test_base_asks_for_the_stages_before_it(train: Run) -> None:
    result = train("base")
    assert result.exit_code == 3
    assert "work/model/tae.safetensors is missing" in result.stderr
    assert "cfgen train mini --stage vae --work work" in result.stderr
    assert train("vae").exit_code == 0
    result = train("base")
    assert result.exit_code == 3
    assert "cfgen train mini --stage tokenizer --work work" in result.stderr


def test_a_stage_goes_on_where_it_stopped(train: Run) -> None:
    assert train("vae", vae__loop__steps="2").exit_code == 0
    before = Path("work/model/tae.safetensors").read_bytes()
    result = train("vae")
    assert result.exit_code == 0, result.stderr
    assert _steps("vae") == [1, 2, 3, 4]
    assert Path("work/model/tae.safetensors").read_bytes() != before
    assert Path("work/vae/loss.png").read_bytes().startswith(b"\x89PNG")


def test_minutes_end_a_slice(train: Run) -> None:
    result = train("vae", "--minutes", "0.01", "--json", vae__loop__steps="1000000")
    assert result.exit_code == 0, result.stderr
    envelope = json.loads(result.stdout.splitlines()[-1])
    assert 0 < envelope["data"]["step"] == _steps("vae")[-1] < 1000000
    state = json.loads(Path("work/vae/state.json").read_text())
    assert state["step"] == envelope["data"]["step"]


def test_state_of_another_size_is_refused(train: Run) -> None:
    train("vae")
    result = train("vae", vae__encoder_width="16")
    assert result.exit_code == 3
    assert "holds the state of another model" in result.stderr


def test_another_autoencoder_encodes_the_films_anew(train: Run) -> None:
    train("tokenizer")
    train("vae", vae__loop__steps="2")
    assert train("base", base__loop__steps="1").exit_code == 0
    (first,) = Path("work/latents").iterdir()
    train("vae", vae__loop__steps="3")
    assert train("base", base__loop__steps="2").exit_code == 0
    second = set(Path("work/latents").iterdir()) - {first}
    assert len(second) == 1
    assert _steps("base") == [1, 2]


def test_the_stages_end_in_a_model_that_renders(train: Run, cfgen: Run) -> None:
    told = train("tokenizer", "--json")
    assert told.exit_code == 0, told.stderr
    assert json.loads(told.stdout)["data"]["model"] == "work/model"
    for stage in ("vae", "base"):
        result = train(stage)
        assert result.exit_code == 0, result.stderr
        assert result.stdout == "work/model\n"
        assert f"{stage} 4/4" in result.stderr
    made = cfgen(
        *("render", "a red balloon drifts over snowy hills", "--duration", "2s", "-o", "clip.mp4"),
        *("--set", "model.path=work/model", "--set", "model.sizes=[64x64]", "--set", "threads=1"),
    )
    assert made.exit_code == 0, made.stderr
    assert "warning" not in made.stderr
    assert measure(find_ffmpeg(), Path("clip.mp4"), decode=True).frames == 32
    returns = {"probe__films": "1", "probe__ways": "[cut]", "probe__away": "[2]"}
    returns |= {"probe__policies": "[window-6-1, slow_fast-cfgen]", "probe__steps": "1"}
    probed = train("probe", **returns)
    assert probed.exit_code == 0, probed.stderr
    assert "probe 2/2" in probed.stderr
    assert len(probed.stdout.splitlines()) == 3
    rows = json.loads(Path("work/probe/returns.json").read_text())["rows"]
    assert [row["policy"] for row in rows] == ["window-6-1", "slow_fast-cfgen"]
    again = train("probe", **returns)
    assert (again.stdout, again.stderr) == (probed.stdout, "")


STUDENT = {
    "timesteps": "[1000, 500]",
    "latent_size": "[4, 4]",
    "targets": "1",
    "batch": "1",
    "ratio": "2",
    "reuse": "1",
}


def test_a_student_is_distilled_in_two_stages(train: Run, cfgen: Run) -> None:
    """From base to `dmd` to `cdmd`, with films on the way, to a model that renders so."""
    refused = train("dmd")
    assert refused.exit_code == 3
    assert "work/model is missing: stage dmd needs it as its student" in refused.stderr
    for stage in ("tokenizer", "vae", "base"):
        assert train(stage).exit_code == 0
    for stage, chunks in (("dmd", "[1, 1]"), ("cdmd", "[2, 3]")):
        values = {f"{stage}__{key}": value for key, value in STUDENT.items()}
        values |= {f"{stage}__chunks": chunks, f"{stage}__sample__films": "1"}
        loop = {"steps": "2", "log_every": "1", "measure_every": "2", "precision": "no"}
        values |= {f"{stage}__loop__{key}": value for key, value in loop.items()}
        result = train(stage, **values, **{f"{stage}__sample__away": "1"})
        assert result.exit_code == 0, result.stderr
        assert result.stdout == f"work/{stage}/model\n"
        *_, last = Path("work", stage, "log.jsonl").read_text().splitlines()
        figures = {"critic_loss", "adherence", "film_motion", "return_db", "choice"}
        assert figures <= set(json.loads(last))
        assert measure(find_ffmpeg(), Path("work", stage, "films", "step-000002.mp4"), decode=True)
    made = cfgen(
        *("render", "a red balloon drifts over snowy hills", "--duration", "2s", "-o", "clip.mp4"),
        *("--config", "work/cdmd/render.yaml", "--set", "threads=1"),
    )
    assert made.exit_code == 0, made.stderr
    assert measure(find_ffmpeg(), Path("clip.mp4"), decode=True).frames == 32
    found = {name: _recipe_and_patches(Path("work", name)) for name in ("model", "cdmd/model")}
    assert found == {"model": ("mini-base", {2, 4}), "cdmd/model": ("mini", set())}


def _recipe_and_patches(model: Path) -> tuple[str, set[int]]:
    """The preset that a generator names, and the larger patches that it has kernels for."""
    with safe_open(model / "diffusion_pytorch_model.safetensors", "pt") as file:
        there = {n for n in (2, 4) if f"patch_embedding_{n}x.weight" in file.keys()}  # noqa: SIM118
        return file.metadata()["cfgen.recipe"], there

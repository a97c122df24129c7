"""What a Python program asks of cfgen, without its command line."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

import cfgen
from cfgen.checkpoint.formats import safetensors
from cfgen.renderer.batch import ClipEnded
from cfgen.renderer.events import ChunkDone, Finished, Noted

PROMPT = "a red balloon drifts over snowy hills"
Film = Callable[..., cfgen.Rendering]


@pytest.fixture
def settings(tiny_settings: list[str]) -> dict[str, str]:
    return dict(text.split("=", 1) for text in tiny_settings)


@pytest.fixture
def film(settings: dict[str, str], tmp_path: Path) -> Film:
    def make(name: str = "a.mp4", **values: object) -> cfgen.Rendering:
        given = {"output": tmp_path / name, "duration": 2, "seed": 3, **values}
        return cfgen.render(PROMPT, settings=settings, **given)

    return make


def frames_of(events: list[object]) -> int:
    last = events[-1]
    assert isinstance(last, Finished)
    assert last.output.exists()
    return last.frames


def test_nothing_of_the_command_line_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    before = set(sys.modules)
    assert all(getattr(cfgen, name) is not None for name in cfgen.__all__)
    assert not [name for name in set(sys.modules) - before if name.startswith("cfgen.cli")]


def test_a_render_opens_each_file_of_weights_once(
    tiny_settings: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model in the box, whose preset is known; a path that is given is opened to tell it."""
    opened: Counter[str] = Counter()
    opens = safetensors.open_safetensors

    def counted(path: Path) -> object:
        opened[path.name] += 1
        return opens(path)

    monkeypatch.setattr(safetensors, "open_safetensors", counted)
    film = cfgen.render(PROMPT, output=tmp_path / "a.mp4", duration=1, threads=1)
    assert frames_of(list(film)) == 16
    assert opened == {
        "diffusion_pytorch_model.safetensors": 1,
        "tae.safetensors": 1,
        "model.safetensors": 1,
    }


def test_a_render_that_is_stopped_is_resumed(film: Film, tmp_path: Path) -> None:
    whole = frames_of(list(film("whole.mp4")))
    half = film()

    def stop_early() -> None:
        for event in half:
            if isinstance(event, ChunkDone):
                half.stop("enough")

    with pytest.raises(cfgen.CfgenError) as stopped:
        stop_early()
    assert stopped.value.exit_code == 130
    with pytest.raises(cfgen.CfgenError, match="exists already|holds an earlier render"):
        film()
    for run in (tmp_path / "a.cfgen", tmp_path / "a.mp4"):
        assert frames_of(list(cfgen.resume(run))) == whole
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "whole.mp4").read_bytes()
    told = [event.message for event in cfgen.resume(tmp_path / "a.mp4") if isinstance(event, Noted)]
    assert "is finished, and whole" in told[-1]


def test_a_branch_and_a_retry(film: Film, tmp_path: Path) -> None:
    frames = frames_of(list(film()))
    first = (tmp_path / "a.mp4").read_bytes()
    other = cfgen.branch(tmp_path / "a.mp4", at=1, output=tmp_path / "b.mp4", duration=3)
    assert frames_of(list(other)) == frames + 16
    assert (tmp_path / "a.mp4").read_bytes() == first
    assert frames_of(list(cfgen.retry(tmp_path / "a.cfgen", begin="1s", seed=9))) == frames
    assert (tmp_path / "a.mp4").read_bytes() != first
    back, kept = cfgen.undo_retry(tmp_path / "a.mp4")
    assert (back.name, kept.name) == ("a.take-1.mp4", "a.take-2.mp4")
    assert (tmp_path / "a.mp4").read_bytes() == first


def test_a_list(settings: dict[str, str], tmp_path: Path) -> None:
    path = tmp_path / "list.yaml"
    model = settings["model.path"]
    path.write_text(
        "version: 1\n"
        f"defaults: {{duration: 1s, seed: 1, size: 48x32, model: {{path: {model}, sizes: [48x32]}},"
        " schedule: {timesteps: [1000, 500], guidance: 1}, threads: 1}\n"
        f"clips: [{PROMPT}, {{name: bad, prompt: a kite, memory: {{admission_layers: [99]}}}}]\n"
    )
    runner = cfgen.batch(path)
    ended = {e.item.name: e.fate.state for e in runner if isinstance(e, ClipEnded)}
    assert sorted(ended.values()) == ["done", "failed"]
    assert ended["bad"] == "failed"
    assert runner.report()["done"] == 1


def test_a_plan_loads_nothing(settings: dict[str, str]) -> None:
    job = cfgen.plan(PROMPT, duration="10s", settings={**settings, "memory.tau": 0.9})
    assert job.plan.frames == 160
    assert job.config.memory.admission.tau == 0.9
    assert job.model.geometry.num_layers > 0


@pytest.mark.parametrize("values", [{"audio": "sea.wav", "audio_offset": 2}, {"audio": Path("s")}])
def test_a_sound_is_an_argument(settings: dict[str, str], values: dict[str, object]) -> None:
    sound = cfgen.plan(PROMPT, settings=settings, **values).config.audio
    assert sound.file == Path(str(values["audio"])).absolute()
    assert sound.offset_s == values.get("audio_offset")


def test_weights_are_described(settings: dict[str, str]) -> None:
    (report,) = cfgen.inspect(f"{settings['model.path']}/tae.safetensors", digests=False)
    assert report.refusal is None
    assert report.network is not None
    assert report.network.kind == "vae"


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"duraton": 3}, "duration"),
        ({"settings": {"memory.tua": 0.9}}, "memory.tau"),
        ({"settings": {"model.lora": ["a"]}}, "model.loras"),
        ({"duration": "soon"}, "duration"),
        ({"size": "1x1"}, "size"),
    ],
)
def test_a_value_that_cannot_be_used_is_named(values: dict[str, object], named: str) -> None:
    with pytest.raises(cfgen.CfgenError, match=named):
        cfgen.plan(PROMPT, **values)


def test_no_prompt_no_film(film: Film) -> None:
    with pytest.raises(cfgen.CfgenError, match="prompt is empty"):
        cfgen.render("  ")


def test_a_film_of_shots(settings: dict[str, str], tmp_path: Path) -> None:
    shots = ["1s: a red balloon", {"duration": 1, "prompt": "a kite", "transition": "cut"}]
    job = cfgen.plan(shots=shots, settings=settings)
    assert [(span.prompt, span.transition) for span in job.plan.spans][1] == ("a kite", "cut")
    asked = {"shots": shots, "seed": 3, "output": tmp_path / "a.mp4", "settings": settings}
    frames = frames_of(list(cfgen.render(**asked)))
    assert frames == 32
    other = cfgen.branch(
        tmp_path / "a.mp4", at=1, output=tmp_path / "b.mp4", prompt="a boat", transition="flush"
    )
    assert frames_of(list(other)) == frames
    with pytest.raises(cfgen.CfgenError, match="does not go with shots"):
        cfgen.plan("a boat", shots=shots, settings=settings)

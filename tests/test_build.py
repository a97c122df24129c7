"""From a configuration to objects, with a tiny model: dtypes, prompts, warnings, damaged files."""

from __future__ import annotations

import json
import re
import shutil
import types
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner, Result

from cfgen.checkpoint.convert.quantize import save_quantized
from cfgen.checkpoint.identify.digests import digest
from cfgen.checkpoint.networks.fill import load_generator
from cfgen.cli.app import app
from cfgen.config.loader import load
from cfgen.config.presets import locate_model
from cfgen.config.schema import (
    FullMemory,
    RenderConfig,
    SlowFastMemory,
    WindowMemory,
)
from cfgen.errors import CheckpointError, SetupError
from cfgen.memory.policy import Policy
from cfgen.memory.slow_fast import SlowFastTable
from cfgen.memory.slow_fast_release import ReleaseTable
from cfgen.memory.window import WindowTable
from cfgen.pipeline import build
from cfgen.pipeline.job import RenderJob
from cfgen.pipeline.preflight import unknown_words
from cfgen.renderer.source import FrameSource
from cfgen.train.export import Exporter
from cfgen.train.film_world.captions import caption
from cfgen.train.film_world.sampling import sample_film
from cfgen.train.vae_stage import VaeSettings, VaeStage

PROMPT = "a red balloon drifts over snowy hills at sunset, the camera pans right"
GENERATOR = "diffusion_pytorch_model.safetensors"
MATRICES = re.compile(r"blocks\.\d+\.(self_attn\.[qkvo]|ffn\.[02])\.weight")
CONFIGS = ("config.json", "text_encoder/config.json")
WEIGHTS = (GENERATOR, "tae.safetensors", "text_encoder/model.safetensors")


@pytest.fixture
def model(tiny_model: Path, tmp_path: Path) -> Path:
    """A model folder that may be damaged."""
    return Path(shutil.copytree(tiny_model, tmp_path / "model"))


@pytest.fixture
def render(tiny_settings: list[str], tmp_path: Path) -> Callable[..., Result]:
    """Run `cfgen render` with a model folder; the video is `out/clip.mp4`."""

    def run(folder: Path, *settings: str, prompt: str = PROMPT, duration: str = "1s") -> Result:
        (tmp_path / "out").mkdir(exist_ok=True)
        values = [*tiny_settings, f"model.path={folder}", *settings]
        sets = [part for value in values for part in ("--set", value)]
        output = str(tmp_path / "out" / "clip.mp4")
        given = ["render", prompt, "--preset", "mini", "--seed", "3", "--duration", duration]
        return CliRunner().invoke(app, [*given, *sets, "-o", output, "-y"])

    return run


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of our own, empty, and the folder of prompts in it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "cfgen" / "text"


def _config(settings: list[str], **flags: str) -> RenderConfig:
    values = {"prompt": PROMPT, "seed": "3", "output": "unused.mp4", "duration": "1s", **flags}
    return load(values, assignments=settings).config


def _film(settings: list[str], *more: str) -> FrameSource:
    config = _config([*settings, *more])
    return build.build_source(RenderJob(config))


def _frames(film: FrameSource) -> npt.NDArray[np.uint8]:
    return np.concatenate([frames for _, _, frames in film.chunks()])


def _refused(result: Result, out: Path) -> str:
    """The one sentence of a refusal before work, after a look that nothing is left."""
    assert result.exit_code == 3, result.output
    assert list(out.iterdir()) == []
    assert "Traceback" not in result.output
    (sentence,) = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    return sentence


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_dtype_is_that_of_matrices_pages_and_decoder(
    tiny_settings: list[str], dtype: str
) -> None:
    film = _film(tiny_settings, f"dtype={dtype}", "memory.slow=12")
    kind = getattr(torch, dtype)
    assert film.generator.get_parameter("blocks.0.ffn.0.weight").dtype == kind
    assert film.generator.get_parameter("head.head.weight").dtype == torch.float32
    assert {p.dtype for p in film.vae.parameters()} == {kind}
    pages, layers, tokens, width = 2 * 6 + 1, 2, 3 * 2, 24  # the clip has 6 latent frames
    assert film.memory.nbytes == 2 * layers * pages * tokens * width * kind.itemsize
    frames = _frames(film)
    assert frames.shape == (16, 32, 48, 3)
    assert len(np.unique(frames)) > 100


def test_bfloat16_makes_nearly_the_film_of_float32(tiny_settings: list[str]) -> None:
    exact, coarse = (
        _frames(_film(tiny_settings, f"dtype={dtype}")).astype(int)
        for dtype in ("float32", "bfloat16")
    )
    assert not np.array_equal(exact, coarse)
    assert np.abs(exact - coarse).mean() < 2


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_weights_that_stay_quantized_make_the_same_film(
    tiny_settings: list[str], model: Path, dtype: str
) -> None:
    state = load_file(model / GENERATOR)
    save_quantized(state, model / GENERATOR, lambda name, _t: bool(MATRICES.fullmatch(name)))
    settings = [*tiny_settings, f"model.path={model}", f"dtype={dtype}"]
    kept, expanded = (_film(settings, f"model.quantized={way}") for way in ("keep", "expand"))
    name = "blocks.0.ffn.0.weight"
    assert name not in dict(kept.generator.named_parameters())
    assert kept.generator.get_buffer("blocks.0.ffn.0.weight_values").dtype == torch.int8
    assert expanded.generator.get_parameter(name).dtype == getattr(torch, dtype)
    assert np.array_equal(_frames(kept), _frames(expanded))


def test_backends_agree(tiny_settings: list[str]) -> None:
    fast, reference = (
        _frames(_film(tiny_settings, "dtype=float32", f"backend={name}")).astype(int)
        for name in ("torch", "reference")
    )
    assert np.abs(fast - reference).max() <= 1


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_sidecar_tells_how_to_make_the_video_again(
    render: Callable[..., Result], model: Path, tmp_path: Path, dtype: str
) -> None:
    assert render(model, f"dtype={dtype}").exit_code == 0
    told = json.loads((tmp_path / "out" / "clip.mp4.json").read_text())["metadata"]
    assert (told["prompt"], told["seed"], told["preset"]) == (PROMPT, "3", "mini")
    assert (told["dtype"], told["threads"]) == (dtype, "1")
    assert told["generator_sha256"] == digest(model / GENERATOR)
    assert told["vae_sha256"] == digest(model / "tae.safetensors")


def test_threads_are_pinned(tiny_settings: list[str]) -> None:
    for threads in (2, 1):
        _film(tiny_settings, f"threads={threads}")
        assert torch.get_num_threads() == threads


@pytest.mark.parametrize(
    ("config", "kind", "capacity"),
    [
        (FullMemory(), WindowTable, 30),
        (WindowMemory(sink=3, size=12), WindowTable, 12),
        (SlowFastMemory(variant="release"), ReleaseTable, 21),
        (SlowFastMemory(variant="paper", slow=4), SlowFastTable, 13),
        (SlowFastMemory(variant="cfgen", slow=0), SlowFastTable, 9),
    ],
)
def test_each_policy_has_its_table(config: Policy, kind: type, capacity: int) -> None:
    table = config.table(30)
    assert type(table) is kind
    assert table.capacity == config.capacity(30) == capacity


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_device_that_is_not_there_is_refused(tiny_settings: list[str]) -> None:
    with pytest.raises(SetupError, match="device cuda:1 is not there") as caught:
        _film(tiny_settings, "device=cuda:1")
    assert caught.value.exit_code == 3


def test_unknown_words_are_named_with_what_the_model_knows(
    render: Callable[..., Result], model: Path
) -> None:
    result = render(model, prompt="a zebra and a red balloon, ZEBRA, by the café at sunset")
    assert result.exit_code == 0
    lines = result.stderr.splitlines()
    first = lines.index("warning: the model has never seen 'zebra', 'café' and may ignore it")
    told = lines[first + 1 : first + 8]
    assert told[:2] == [
        "hint: understood as: a … and a red balloon, …, by the … at sunset",
        "it knows:",
    ]
    assert [row.split()[0] for row in told[2:]] == [
        "things",
        "motions",
        "places",
        "times",
        "camera",
    ]
    assert told[2].startswith("  things   one to three of balloon, kite, star, heart, cube")
    assert max(map(len, told)) < 200


@pytest.mark.parametrize(
    ("prompt", "understood"),
    [
        ("a zebra", "a …"),
        ("Zebra zoo, ZEBRA! a red kite", "…! a red kite"),
        ("a red kite, filmed by Ōkami's drone", "a red kite, … by …"),
        ("zebra", "…"),
        ("a zebra " * 60, "a … " * 29 + "a …"),
    ],
)
def test_what_is_understood_is_told_without_the_unknown_words(
    tiny_settings: list[str], model: Path, prompt: str, understood: str
) -> None:
    config = _config([*tiny_settings, f"model.path={model}"], prompt=prompt)
    (warning,) = unknown_words(config)
    assert (warning.hint or "").splitlines()[0] == f"understood as: {understood}"
    assert len(warning.message) < 200


def test_many_unknown_words_are_counted(tiny_settings: list[str], model: Path) -> None:
    words = " ".join("q" * (index + 3) for index in range(20))
    config = _config([*tiny_settings, f"model.path={model}"], prompt=words)
    (warning,) = unknown_words(config)
    assert "'qqqqqqqqqq' and 12 more and may ignore it" in warning.message


@pytest.mark.parametrize("held_out", [False, True])
def test_captions_have_no_unknown_words(tiny_settings: list[str], held_out: bool) -> None:
    config = _config(tiny_settings)
    for seed in range(200):
        text = caption(sample_film(seed, chunks=2, held_out=held_out), 0, seed)
        assert unknown_words(replace(config, prompt=text)) == (), text


@pytest.mark.parametrize("named", ["folder", "file"])
def test_a_model_that_tells_its_words_warns_of_others(
    tiny_settings: list[str], model: Path, named: str
) -> None:
    place = model if named == "folder" else model / GENERATOR
    config = _config([*tiny_settings, f"model.path={place}"], prompt="a zebra")
    (warning,) = unknown_words(config)
    assert "'zebra'" in warning.message
    (model / "mini.json").unlink()
    assert unknown_words(config) == ()


@pytest.mark.parametrize("name", [*CONFIGS, *WEIGHTS, "tokenizer/tokenizer.json"])
@pytest.mark.parametrize("damage", ["empty", "cut off"])
def test_a_damaged_file_is_refused(
    render: Callable[..., Result], model: Path, tmp_path: Path, cache: Path, name: str, damage: str
) -> None:
    file = model / name
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2] if damage == "cut off" else b"")
    assert str(file) in _refused(render(model), tmp_path / "out")


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("config.json", "{model}/" + GENERATOR + " is 24 wide, .* no config.json lies beside it"),
        (GENERATOR, "{model} holds no file of weights, and none is named " + GENERATOR),
        ("tae.safetensors", "no video autoencoder lies in {model}"),
        ("text_encoder/config.json", "{model}/text_encoder/config.json cannot be read"),
        ("text_encoder/model.safetensors", "{model}/text_encoder holds no text encoder"),
        ("text_encoder", "no text encoder lies in {model}"),
        ("tokenizer/tokenizer.json", "model.safetensors brings no tokenizer and none lies beside"),
    ],
)
def test_what_is_missing_is_named(
    render: Callable[..., Result], model: Path, tmp_path: Path, cache: Path, name: str, told: str
) -> None:
    file = model / name
    shutil.rmtree(file) if file.is_dir() else file.unlink()
    sentence = _refused(render(model), tmp_path / "out")
    assert re.search(told.format(model=re.escape(str(model))), sentence), sentence


@pytest.mark.parametrize("name", WEIGHTS)
@pytest.mark.parametrize("change", ["lacks one", "has one more", "has another shape"])
def test_weights_that_do_not_fit_are_refused(
    render: Callable[..., Result], model: Path, tmp_path: Path, cache: Path, name: str, change: str
) -> None:
    tensors = load_file(model / name)
    chosen = next(key for key in sorted(tensors) if tensors[key].ndim == 1)
    if change == "lacks one":
        del tensors[chosen]
    elif change == "has one more":
        chosen = "extra.weight"
        tensors[chosen] = torch.zeros(3)
    else:
        tensors[chosen] = torch.zeros(1)
    save_file(tensors, model / name)
    sentence = _refused(render(model), tmp_path / "out")
    assert str(model / name) in sentence
    assert chosen in sentence


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("config.json", {"text_len": "long"}, "text_len must be a whole number above 0"),
        ("config.json", {"num_heads": 5}, "num_heads"),
        ("text_encoder/config.json", {"vocab_size": 8}, "vocab_size 8 instead of"),
        ("mini.json", {"words": None}, "must tell the model's words"),
    ],
)
def test_a_value_that_cannot_be_is_refused(
    render: Callable[..., Result],
    model: Path,
    tmp_path: Path,
    cache: Path,
    name: str,
    content: dict[str, object],
    told: str,
) -> None:
    facts = json.loads((model / name).read_text())
    (model / name).write_text(json.dumps(facts | content))
    assert told in _refused(render(model), tmp_path / "out")


def test_a_damaged_list_of_words_is_refused(
    render: Callable[..., Result], model: Path, tmp_path: Path
) -> None:
    (model / "mini.json").write_text('{"words": [')
    assert "mini.json is not JSON" in _refused(render(model), tmp_path / "out")


def test_parts_of_different_models_are_refused(tiny_settings: list[str], model: Path) -> None:
    widths = VaeSettings(
        texture_channels=4,
        encoder_width=8,
        decoder_widths=(8, 8, 8, 8),
        patch_size=1,
        crop=(32, 32),
        frames=5,
        films=1,
    )
    vae = VaeStage(widths, model)
    vae.export(dict(vae.modules.named_parameters()))
    told = "makes latents of 16 channels, and the autoencoder reads 12"
    with pytest.raises(CheckpointError, match=told):
        _film(tiny_settings, f"model.path={model}")


def test_a_cache_that_does_not_fit_is_refused_before_anything_is_rendered(
    render: Callable[..., Result],
    model: Path,
    tmp_path: Path,
    cache: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    free = types.SimpleNamespace(available=1000)
    monkeypatch.setattr("psutil.virtual_memory", lambda: free)
    result = render(model, "memory.policy=full", duration="40m")
    told = _refused(result, tmp_path / "out")
    assert re.search(r"takes about [0-9.]+ GB of memory and 0\.0 GB are free", told)
    assert re.search(r"most of it is for (kv cache|one pass), [0-9.]+ GB", told)
    assert "--memory slow_fast or window" in result.stderr
    assert not cache.exists(), "not even the prompt was encoded"


def test_a_missing_ffmpeg_is_found_before_the_model_is_read(
    render: Callable[..., Result], model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CFGEN_FFMPEG", str(tmp_path / "no-ffmpeg"))
    shutil.rmtree(model / "text_encoder")
    assert "CFGEN_FFMPEG names" in _refused(render(model), tmp_path / "out")


@pytest.mark.parametrize("kind", ["tiny", "mini"])
def test_what_is_exported_is_what_is_loaded(tiny_model: Path, tmp_path: Path, kind: str) -> None:
    """A second export of the loaded weights gives the same values, in as many bits or fewer."""
    folder = tiny_model if kind == "tiny" else locate_model("mini")
    generator = load_generator(folder, expand=True)
    loaded = {f"generator.{name}": p for name, p in generator.named_parameters()}
    Exporter(tmp_path)(generator.geometry, {}, loaded)
    before, again = load_file(folder / GENERATOR), load_file(tmp_path / GENERATOR)
    assert again.keys() == before.keys()
    assert (torch.int8 in {t.dtype for t in again.values()}) == (kind == "mini")
    for name, tensor in before.items():
        if not name.endswith("comfy_quant"):
            assert torch.equal(again[name], tensor.to(again[name].dtype)), name

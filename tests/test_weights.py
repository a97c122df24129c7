"""From names in a configuration to files, digests and networks: what was named and nothing else."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from cfgen.checkpoint.networks.fill import load_generator
from cfgen.checkpoint.networks.model_files import ModelFiles
from cfgen.config.loader import load
from cfgen.config.presets import locate_model
from cfgen.config.schema import ModelConfig, RenderConfig
from cfgen.errors import BackendUnavailable, CheckpointError, UsageError
from cfgen.model.quantized import QuantizedLinear
from cfgen.pipeline import build
from cfgen.pipeline import models as weights
from cfgen.pipeline.job import RenderJob
from cfgen.pipeline.models import OpenedModel
from cfgen.train.export import text_config

PROMPT = "a red balloon drifts over snowy hills at sunset"
GENERATOR = "diffusion_pytorch_model.safetensors"
LAYER = "blocks.0.self_attn.q"
CPU = torch.device("cpu")


@pytest.fixture
def model(tiny_model: Path, tmp_path: Path) -> Path:
    """A model folder that may be changed."""
    return Path(shutil.copytree(tiny_model, tmp_path / "model"))


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of our own, empty, and the folder of prompts in it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "cfgen" / "text"


@pytest.fixture
def lora(tmp_path: Path) -> Callable[..., str]:
    """Write a LoRA of rank 2 for one layer of the tiny model; its path."""

    def write(name: str = "a.safetensors", seed: int = 0, layer: str = LAYER) -> str:
        torch.manual_seed(seed)
        pair = {"lora_A": torch.randn(2, 24), "lora_B": torch.randn(24, 2)}
        tensors = {f"diffusion_model.{layer}.{part}.weight": t for part, t in pair.items()}
        save_file(tensors, tmp_path / name)
        return str(tmp_path / name)

    return write


def config_of(place: Path | str, **parts: object) -> ModelConfig:
    return replace(ModelConfig(path=str(place), sizes=((48, 32),)), **parts)


def load_parts(model: ModelConfig, **more: object) -> weights.LoadedModels:
    return OpenedModel(model).load(dtype=torch.float32, device=CPU, **more)


def matrix(found: weights.LoadedModels) -> Tensor:
    return found.generator.get_parameter(f"{LAYER}.weight")


def _film(settings: list[str], **flags: str) -> tuple[RenderConfig, object]:
    values = {"prompt": PROMPT, "seed": "3", "output": "unused.mp4", "duration": "1s", **flags}
    config = load(values, assignments=settings).config
    return config, build.build_source(RenderJob(config))


# Files


def test_parts_lie_beside_the_generator_or_are_named(model: Path, tmp_path: Path) -> None:
    beside = ModelFiles(
        generator=model / GENERATOR,
        text_encoder=model / "text_encoder",
        vae=model / "tae.safetensors",
        tokenizer=model / "tokenizer" / "tokenizer.json",
    )
    assert OpenedModel(config_of(model)).files == beside
    assert OpenedModel(config_of(model / GENERATOR)).files == beside
    vae = Path(shutil.copy(model / "tae.safetensors", tmp_path / "other.safetensors"))
    named = config_of(model, vae=str(vae), tokenizer=str(model / "tokenizer"))
    assert OpenedModel(named).files == replace(beside, vae=vae, tokenizer=model / "tokenizer")


def test_an_encoder_from_elsewhere_does_not_take_the_models_tokenizer(model: Path) -> None:
    files = OpenedModel(config_of(model, text_encoder=str(model / "text_encoder"))).files
    assert files.text_encoder == model / "text_encoder"
    assert files.tokenizer is None


def test_parts_may_lie_in_the_cache_of_the_hub(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = "c0ffee" + "0" * 34
    repo = tmp_path / "hf" / "hub" / "models--owner--film"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text(commit)
    there = Path(shutil.copytree(model, repo / "snapshots" / commit))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    named = config_of(f"owner/film/{GENERATOR}", vae="owner/film@c0ffee0/tae.safetensors")
    files = OpenedModel(named).files
    assert (files.generator, files.vae) == (there / GENERATOR, there / "tae.safetensors")
    assert OpenedModel(config_of("owner/film")).files.generator == there / GENERATOR


@pytest.mark.parametrize("part", ["text_encoder", "vae", "tokenizer"])
def test_a_named_part_that_is_nowhere_is_refused_by_what_it_is(model: Path, part: str) -> None:
    what = {"text_encoder": "text encoder", "vae": "video autoencoder"}.get(part, part)
    told = f"the {what} 'owner/name/x.pth' is neither on disk nor in the Hugging Face cache"
    with pytest.raises(CheckpointError, match=told) as caught:
        _ = OpenedModel(config_of(model, **{part: "owner/name/x.pth"})).files
    assert caught.value.hint == "cfgen models pull owner/name/x.pth"


# Digests


def test_every_file_that_makes_frames_reaches_a_digest(model: Path) -> None:
    before = OpenedModel(config_of(model)).digests
    files = {
        GENERATOR: "generator_sha256",
        "config.json": "generator_config_sha256",
        "tae.safetensors": "vae_sha256",
    }
    assert set(before) == set(files.values())
    for name, key in files.items():
        content = bytearray((model / name).read_bytes())
        if name.endswith(".json"):
            content += b" "
        else:
            content[-1] ^= 1
        (model / name).write_bytes(content)
        after = OpenedModel(config_of(model)).digests
        assert {other for other in before if after[other] != before[other]} == {key}
        before = after


def test_order_and_strength_of_loras_reach_the_digest(
    model: Path, lora: Callable[..., str]
) -> None:
    a, b = lora("a.safetensors", 1), lora("b.safetensors", 2)
    lists = [(a,), (b,), (a, b), (b, a), (f"{a}:0.5",), (f"{a}:-1",), (f"{a}:0.5", b), (a, a)]
    lists += [(f"{a}:0.50000001",)]
    found = [OpenedModel(config_of(model, loras=each)).digests["loras_sha256"] for each in lists]
    assert len(set(found)) == len(lists)
    same = OpenedModel(config_of(model, loras=(f"{a}:1.0",))).digests
    assert same["loras_sha256"] == found[0], "no strength is 1"
    renamed = str(shutil.copy(a, Path(a).with_name("c.safetensors")))
    assert OpenedModel(config_of(model, loras=(renamed,))).digests["loras_sha256"] == found[0]


def test_a_folder_and_an_index_have_the_digest_of_all_their_weights(tmp_path: Path) -> None:
    folder = tmp_path / "vae"
    folder.mkdir()
    shard = {n: folder / f"model-0000{n}-of-00002.safetensors" for n in (1, 2)}
    for n, path in shard.items():
        save_file({f"x{n}": torch.tensor([n])}, path)
    index = folder / "model.safetensors.index.json"
    places_of = {f"x{n}": path.name for n, path in shard.items()}
    index.write_text(json.dumps({"weight_map": places_of}))
    places = (folder, index)
    before = [weights.digest_of(place) for place in places]
    (folder / "README.md").write_text("hello")
    assert [weights.digest_of(place) for place in places] == before
    save_file({"x2": torch.tensor([3])}, shard[2])
    after = [weights.digest_of(place) for place in places]
    assert all(one != other for one, other in zip(before, after, strict=True))


def test_a_model_that_is_hashed_anew_asks_for_every_file_so(
    model: Path, lora: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: set[tuple[str, bool]] = set()
    digest = weights.file_digest

    def noted(path: Path, *, anew: bool = False) -> str:
        asked.add((path.name, anew))
        return digest(path, anew=anew)

    monkeypatch.setattr(weights, "file_digest", noted)
    opened = OpenedModel(config_of(model, loras=(lora("a.safetensors", 1),)))
    opened.hash_anew()
    _ = opened.digests, opened.text_digest
    names = {GENERATOR, "config.json", "tae.safetensors", "a.safetensors", "model.safetensors"}
    assert names | {"tokenizer.json"} == {name for name, _ in asked}
    assert all(anew for _, anew in asked)


@pytest.mark.parametrize(
    "name", [GENERATOR, "tae.safetensors", "a.safetensors", "text_encoder/model.safetensors"]
)
def test_a_file_that_changes_after_it_was_opened_is_refused(
    model: Path, lora: Callable[..., str], cache: Path, name: str
) -> None:
    """Its header would be of one content, and its digest of another."""
    place = lora("a.safetensors", 1)
    opened = OpenedModel(config_of(model, loras=(place,)))
    _ = opened.generator, opened.vae, opened.text_encoder, opened.loras
    path = Path(place) if name == "a.safetensors" else model / name
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.unlink()
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="changed while they were loaded"):
        _ = opened.embed([PROMPT]), opened.digests
    assert not cache.exists() or not list(cache.iterdir())


# Networks


@pytest.mark.parametrize("strength", [1.0, -0.5])
def test_a_lora_is_merged_at_its_strength(
    model: Path, lora: Callable[..., str], strength: float
) -> None:
    path = lora()
    pair = load_file(path)
    down, up = (pair[f"diffusion_model.{LAYER}.lora_{part}.weight"] for part in "AB")
    plain, changed = (
        load_parts(config_of(model)),
        load_parts(config_of(model, loras=(f"{path}:{strength}",))),
    )
    expected = matrix(plain) + strength * (up.double() @ down.double()).float()
    torch.testing.assert_close(matrix(changed), expected)
    assert plain.notes == ()
    assert changed.notes[-1] == f"applied at {strength:g}: 1 merged"


def test_loras_add_up(model: Path, lora: Callable[..., str]) -> None:
    a, b = lora("a.safetensors", 1), lora("b.safetensors", 2)
    plain, both, one, other = (
        matrix(load_parts(config_of(model, loras=loras))) for loras in ((), (a, b), (a,), (b,))
    )
    torch.testing.assert_close(both - plain, (one - plain) + (other - plain))


def test_a_lora_stays_beside_weights_that_are_quantized(tmp_path: Path) -> None:
    mini = locate_model("mini")
    pair = {"lora_A": torch.randn(2, 256), "lora_B": torch.randn(256, 2)}
    path = tmp_path / "a.safetensors"
    save_file({f"{LAYER}.{part}.weight": t for part, t in pair.items()}, path)
    kept = load_parts(config_of(mini, loras=(str(path),)))
    layer = kept.generator.get_submodule(LAYER)
    assert isinstance(layer, QuantizedLinear)
    assert layer.adapters == 1
    assert kept.notes[-1] == "applied at 1: 1 kept beside quantized weights"
    expanded = load_parts(config_of(mini, loras=(str(path),), quantized="expand"))
    assert expanded.notes[-1] == "applied at 1: 1 merged"
    x = torch.randn(3, 256)
    with torch.inference_mode():
        other = expanded.generator.get_submodule(LAYER)
        torch.testing.assert_close(layer(x), other(x), rtol=1e-4, atol=1e-4)


def test_a_lora_without_a_layer_is_refused(model: Path, lora: Callable[..., str]) -> None:
    path = lora(layer="blocks.9.self_attn.q")
    with pytest.raises(CheckpointError, match="the generator has no place for"):
        load_parts(config_of(model, loras=(path,)))


@pytest.mark.parametrize("text", ["film:0", "film:much", "film:"])
def test_a_lora_that_is_written_wrongly_is_a_usage_error(model: Path, text: str) -> None:
    with pytest.raises(UsageError, match="is not a LoRA with a strength"):
        _ = OpenedModel(config_of(model, loras=(text,))).digests


def test_native_products_are_refused_where_nothing_is_quantized(model: Path) -> None:
    with pytest.raises(BackendUnavailable, match="none of its layers is quantized"):
        load_parts(config_of(model, matmul="native"))


def test_bytes_of_loaded_models_are_those_of_their_tensors(model: Path) -> None:
    found = load_parts(config_of(model))
    tensors = load_file(model / GENERATOR).values()
    # What is stored in bfloat16 is loaded in float32, and what is quantized as it is stored.
    loaded = sum(t.nbytes * (2 if t.dtype == torch.bfloat16 else 1) for t in tensors)
    assert found.nbytes == loaded + sum(p.nbytes for p in found.decoder.parameters())
    mini = load_parts(config_of(locate_model("mini"))), load_generator(locate_model("mini"))
    assert mini[0].nbytes > sum(b.nbytes for b in mini[1].buffers()) > 0


def test_tiles_that_are_asked_for_reach_the_decoder(model: Path) -> None:
    assert load_parts(config_of(model)).decoder.start().mode.tile is None
    assert load_parts(config_of(model, vae_tile=32)).decoder.start().mode.tile == 32


# Prompts


def _no_encoder(*_arguments: object, **_named: object) -> None:
    raise AssertionError("the text encoder was loaded")


def test_a_prompt_is_encoded_once(
    model: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = OpenedModel(config_of(model)).embed([PROMPT])[PROMPT]
    assert len(list(cache.iterdir())) == 1
    monkeypatch.setattr(weights, "build_text_encoder", _no_encoder)
    assert torch.equal(OpenedModel(config_of(model)).embed([PROMPT])[PROMPT], first)
    with pytest.raises(AssertionError, match="the text encoder was loaded"):
        OpenedModel(config_of(model)).embed(["another prompt"])


@pytest.mark.parametrize(
    "part",
    ["text_encoder/model.safetensors", "text_encoder/config.json", "tokenizer/tokenizer.json"],
)
def test_another_encoder_does_not_take_the_cached_prompt(
    model: Path, cache: Path, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    OpenedModel(config_of(model)).embed([PROMPT])
    content = (model / part).read_bytes()
    other = content + b" " if part.endswith(".json") else content[:-1] + bytes([content[-1] ^ 1])
    (model / part).write_bytes(other)
    monkeypatch.setattr(weights, "build_text_encoder", _no_encoder)
    with pytest.raises(AssertionError, match="the text encoder was loaded"):
        OpenedModel(config_of(model)).embed([PROMPT])


def test_another_length_of_prompts_does_not_take_the_cached_prompt(
    model: Path, cache: Path
) -> None:
    assert OpenedModel(config_of(model)).embed([PROMPT])[PROMPT].shape == (1, 64, 16)
    facts = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(facts | {"text_len": 32}))
    assert OpenedModel(config_of(model)).embed([PROMPT])[PROMPT].shape == (1, 32, 16)


@pytest.mark.parametrize("content", [b"", b"not a safetensors file"])
def test_a_damaged_cache_is_made_anew(model: Path, cache: Path, content: bytes) -> None:
    before = OpenedModel(config_of(model)).embed([PROMPT])[PROMPT]
    (file,) = cache.iterdir()
    file.write_bytes(content)
    assert torch.equal(OpenedModel(config_of(model)).embed([PROMPT])[PROMPT], before)
    assert torch.equal(load_file(file)["embedding"], before)


def test_a_cache_that_cannot_be_written_does_not_stop_a_render(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert OpenedModel(config_of(model)).embed([PROMPT])[PROMPT].shape == (1, 64, 16)


def test_an_encoder_of_another_width_is_refused(
    tiny_settings: list[str], model: Path, tmp_path: Path
) -> None:
    from transformers import UMT5Config, UMT5EncoderModel

    rows = load_file(model / "text_encoder" / "model.safetensors")["shared.weight"].shape[0]
    facts = text_config(rows, width=24, layers=1, ffn=16)
    other = UMT5EncoderModel(UMT5Config(**facts))
    folder = tmp_path / "wider"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(facts))
    state = {n: t.clone() for n, t in other.state_dict().items() if "embed_tokens" not in n}
    save_file(state, folder / "model.safetensors")
    parts = [f"model.text_encoder={folder}", f"model.tokenizer={model / 'tokenizer'}"]
    told = "the text encoder makes 24 numbers a token, the generator reads 16"
    with pytest.raises(CheckpointError, match=told):
        _film([*tiny_settings, *parts])


def test_alpha_and_what_lies_beside_a_lora_reach_the_digest(
    model: Path, lora: Callable[..., str]
) -> None:
    path = lora("a.safetensors", 1)
    found = [OpenedModel(config_of(model, loras=(path,))).digests["loras_sha256"]]
    changed = config_of(model, loras=(path,), lora_alpha=2.0)
    found.append(OpenedModel(changed).digests["loras_sha256"])
    Path(path).with_name("adapter_config.json").write_text('{"lora_alpha": 4}')
    found.append(OpenedModel(config_of(model, loras=(path,))).digests["loras_sha256"])
    assert len(set(found)) == 3

"""The teacher: what it learns from, what errors are added to, and that a run goes on exactly."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from cfgen.checkpoint.lora.apply import apply_lora, open_lora
from cfgen.checkpoint.networks.fill import load_generator
from cfgen.errors import UsageError
from cfgen.model.generator import Generator, WanConfig
from cfgen.model.text_encoder import TextEncoder
from cfgen.model.vae import TinyAutoencoder
from cfgen.train.context_forcing import teacher_stage
from cfgen.train.context_forcing.error_bank import ErrorSettings
from cfgen.train.context_forcing.lora import LoraSettings
from cfgen.train.context_forcing.teacher_films import (
    ClipFilms,
    Films,
    FilmWorld,
    FilmWorldSettings,
)
from cfgen.train.context_forcing.teacher_parts import TeacherExporter
from cfgen.train.context_forcing.teacher_stage import (
    TeacherParts,
    TeacherSettings,
    TeacherStage,
)
from cfgen.train.data.clips import Clips
from cfgen.train.export import text_config
from cfgen.train.film_world.latents import LatentStore
from cfgen.train.loop import train
from cfgen.train.stage import LoopSettings
from cfgen.train.tokenizer_stage import train_tokenizer
from cfgen.train.training_memory import MemorySettings

GEOMETRY = WanConfig(
    dim=24, ffn_dim=32, num_heads=2, num_layers=2, in_dim=4, out_dim=4, text_dim=16, text_len=64
)
MEMORY = MemorySettings(slow=4, window_shares=(0.0, 0.0), full_share=0.0)
ERRORS = ErrorSettings(grids=3, size=4, warmup=1, context_frames=3, clean_chance=0.25)
WHOLE = LoraSettings()
SETTINGS = TeacherSettings(lr=1e-2, targets=2, draws=2, drop_text=0.3, motion_weight=1.0)
LOOP = LoopSettings(steps=3, log_every=1, measure_every=99, precision="no", ema=0.5)
SAVING = dataclasses.replace(LOOP, save_minutes=0.0)
CLIP_LATENTS = 14
"""Four chunks, and two latent frames that no chunk has."""

Written = Callable[[Mapping[str, Tensor]], None]


class Tiny:
    """Stages of one tiny model; each call makes a new stage from the same weights."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.tokenizer = train_tokenizer(folder / "model", captions=300)
        torch.manual_seed(0)
        vae = TinyAutoencoder(4, 8, (8, 8, 8, 8))
        store = LatentStore(folder / "latents", vae, width=80, height=48)
        sizes = FilmWorldSettings(families=2, members=2, chunks=(2, 4, 6), batches=(2, 1, 1))
        self.world = FilmWorld(sizes, store)
        self.exported: dict[str, Tensor] = {}

    @property
    def clips(self) -> Clips:
        paths = []
        for number in range(3):
            paths.append(self.folder / f"{number}.safetensors")
            draw = torch.Generator().manual_seed(number)
            save_file({"latents": torch.randn(CLIP_LATENTS, 4, 6, 10, generator=draw)}, paths[-1])
        return Clips(tuple(paths), ("a cat", "a red dog", "a blue bird"))

    def __call__(
        self,
        settings: TeacherSettings = SETTINGS,
        *,
        films: Films | None = None,
        errors: ErrorSettings = ERRORS,
        lora: LoraSettings = WHOLE,
        export: Written | None = None,
    ) -> TeacherStage:
        torch.manual_seed(1)
        generator = Generator(GEOMETRY)
        config = text_config(self.tokenizer.get_vocab_size(), width=16, layers=1, ffn=16)
        encoder = TextEncoder(config, self.tokenizer, text_len=64)
        written = export or self.exported.update
        parts = TeacherParts(generator, encoder, films or self.world, written)
        return TeacherStage(settings, MEMORY, errors, lora, parts)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    return Tiny(tmp_path_factory.mktemp("teacher"))


FACTORS = LoraSettings(rank=2, alpha=2.0)
KINDS: dict[str, dict[str, Any]] = {
    "full": {},
    "lora": {"lora": FACTORS},
    "micro-batches": {"settings": TeacherSettings(lr=1e-2, targets=1, micro_batches=2)},
    "long targets": {"settings": TeacherSettings(lr=1e-2, targets=1, target_chunks=2)},
    "recomputed": {"settings": TeacherSettings(lr=1e-2, targets=1, recompute=True)},
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_that_was_cut_goes_on_exactly(kind: str, tiny: Tiny, tmp_path: Path) -> None:
    """Weights, optimizer, average and error bank; the text encoder stands still throughout."""
    whole = tiny(**KINDS[kind])
    before = {name: w.clone() for name, w in whole.modules["text_encoder"].state_dict().items()}
    list(train(whole, tmp_path / "whole", LOOP, minutes=5))
    expected = dict(tiny.exported)
    for step in (2, 3):  # the step that is cut off here is done again
        for progress in train(tiny(**KINDS[kind]), tmp_path / "cut", SAVING, minutes=5):
            if progress.step == step:
                break
    rest = tiny(**KINDS[kind])
    list(train(rest, tmp_path / "cut", SAVING, minutes=5))
    assert expected.keys() == tiny.exported.keys()
    assert all(torch.equal(tensor, tiny.exported[name]) for name, tensor in expected.items())
    assert all(map(torch.equal, whole.generator.parameters(), rest.generator.parameters()))
    bank = whole.extra_state()
    assert bank.keys() == rest.extra_state().keys() != set()
    assert all(torch.equal(bank[name], errors) for name, errors in rest.extra_state().items())
    for name, tensor in whole.modules["text_encoder"].state_dict().items():
        assert torch.equal(tensor, before[name])


def test_only_factors_are_saved_and_learn(tiny: Tiny, tmp_path: Path) -> None:
    stage = tiny(lora=FACTORS)
    plain = {name: p.clone() for name, p in stage.generator.named_parameters()}
    list(train(stage, tmp_path, LOOP, minutes=5))
    names: set[str] = set()
    for file in (tmp_path / "teacher").glob("*.safetensors"):
        names |= load_file(file).keys()
    weights = {name for name in names if name.startswith("weights.")}
    assert weights
    assert all("lora_" in name for name in weights)
    for name, p in stage.generator.named_parameters():
        assert torch.equal(p, plain[name]) != ("lora_" in name), name


def _gradients(stage: TeacherStage) -> list[Tensor]:
    stage.learners()
    stage.loss(0, 0)[0].backward()
    return [p.grad for p in stage.generator.parameters() if p.grad is not None]


def test_recomputing_changes_no_gradient(tiny: Tiny) -> None:
    kept, again = (
        _gradients(tiny(TeacherSettings(targets=1, recompute=recompute)))
        for recompute in (False, True)
    )
    assert len(kept) == len(again) > 0
    for ours, theirs in zip(kept, again, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-7)


def test_gradients_reach_every_weight_of_the_generator(tiny: Tiny) -> None:
    stage = tiny(TeacherSettings(targets=4))
    stage.learners()
    torch.stack([stage.loss(step, 0)[0] for step in range(3)]).sum().backward()
    untouched = [n for n, p in stage.generator.named_parameters() if p.grad is None]
    assert untouched == []
    assert all(p.grad is None for p in stage.modules["text_encoder"].parameters())


class Committed:
    """Notes what is committed, and by how much it differs from the film."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, stage: TeacherStage) -> None:
        self.errors: list[float] = []
        self._films: Tensor | None = None
        commit, draw = teacher_stage.commit_chunk, stage._parts.films.draw

        def drawn(number: int, rng: np.random.Generator) -> teacher_stage.Drawn:
            films = draw(number, rng)
            self._films = films.batch.latents
            return films

        def committed(generator: Any, memory: Any, view: Any, latents: Tensor, text: Any) -> None:
            assert self._films is not None
            at = slice(3 * len(self.errors), 3 * len(self.errors) + 3)
            self.errors.append(float((latents - self._films[:, at]).abs().max()))
            commit(generator, memory, view, latents, text)

        monkeypatch.setattr(teacher_stage, "commit_chunk", committed)
        monkeypatch.setattr(stage._parts.films, "draw", drawn)


@pytest.mark.parametrize(("frames", "chance", "expected"), [(3, 1, 1), (6, 1, 2), (6, 0, 0)])
def test_the_newest_context_alone_gets_errors(
    frames: int, chance: float, expected: int, tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    errors = ErrorSettings(
        grids=1, context_frames=frames, context_chance=chance, clean_chance=0.0, warmup=0
    )
    settings = TeacherSettings(targets=1, earliest=3)
    stage = tiny(settings, films=ClipFilms(tiny.clips, 1), errors=errors)
    with torch.no_grad():
        stage.loss(0, 0)  # fills the bank
        committed = Committed(monkeypatch, stage)
        stage.loss(1, 0)
    assert [error > 0 for error in committed.errors] == [False] * (3 - expected) + [True] * expected


def test_clips_are_cut_to_whole_chunks_and_taken_in_turn(tiny: Tiny) -> None:
    films, rng = ClipFilms(tiny.clips, 2), np.random.default_rng(0)
    drawn = [films.draw(number, rng) for number in range(3)]
    assert {each.batch.latents.shape for each in drawn} == {(2, 12, 4, 6, 10)}
    said = [each.words(film, 0) for each in drawn for film in range(2)]
    assert sorted(said[:3]) == sorted(said[3:]) == ["a blue bird", "a cat", "a red dog"]


def test_what_is_exported_is_the_sum_and_its_factors(tiny: Tiny, tmp_path: Path) -> None:
    """In bfloat16 for Wan's sizes; the same weights with the file of factors give it as well."""
    folder = tmp_path / "model"
    export = TeacherExporter(folder, GEOMETRY, 8, FACTORS)
    stage = tiny(lora=FACTORS, export=export)
    base = {n: w.clone() for n, w in stage.generator.state_dict().items() if "lora_" not in n}
    list(train(stage, tmp_path, LOOP, minutes=5))
    loaded = load_generator(folder, untrained=True)
    assert loaded.geometry == GEOMETRY
    added = Generator(GEOMETRY)
    added.load_state_dict(base)
    apply_lora(added, open_lora(folder / "lora.safetensors"), 1.0)
    for name, tensor in loaded.state_dict().items():
        ours = added.state_dict()[name]
        assert torch.equal(tensor, ours.to(torch.bfloat16).float()), name
    assert not torch.equal(added.blocks[0].ffn[0].weight, base["blocks.0.ffn.0.weight"])


def test_a_small_teacher_is_exported_with_its_text_encoder(tiny: Tiny, tmp_path: Path) -> None:
    stage = tiny()
    encoder = stage.modules["text_encoder"]
    assert isinstance(encoder, TextEncoder)
    export = TeacherExporter(tmp_path / "model", GEOMETRY, 8, WHOLE, encoder)
    export(stage.generator.state_dict())
    assert load_generator(tmp_path / "model", untrained=True).geometry == GEOMETRY
    assert (tmp_path / "model" / "text_encoder" / "model.safetensors").is_file()


@pytest.mark.parametrize("values", [{"target_chunks": 2}, {"recompute": True}])
def test_targets_that_must_come_last_are_one(values: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="targets must be 1"):
        TeacherSettings(targets=2, **values)


def test_a_film_shorter_than_a_target_is_refused(tiny: Tiny) -> None:
    settings = TeacherSettings(targets=1, target_chunks=5)
    with pytest.raises(UsageError, match="has 4 chunks"):
        tiny(settings, films=ClipFilms(tiny.clips, 1)).loss(0, 0)

"""The stages: random choices derive from the step, and gradients reach all that is trained."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from cfgen.checkpoint.networks.fill import load_generator
from cfgen.checkpoint.networks.vae import SEMANTIC_HEADER, load_tiny
from cfgen.errors import CheckpointError, UsageError
from cfgen.memory.paged import PagedMemory
from cfgen.model.vae import TinyAutoencoder
from cfgen.train.decoder_stage import DecoderSettings, DecoderStage
from cfgen.train.export import Exporter
from cfgen.train.film_world.backgrounds import rng_for
from cfgen.train.film_world.latents import (
    FilmBatch,
    LatentStore,
    encoder_digest,
    film_of,
    returning_cells,
)
from cfgen.train.film_world.sampling import Structure
from cfgen.train.film_world.semantics import SEMANTIC_CHANNELS, semantic_channels
from cfgen.train.film_world.world import Film
from cfgen.train.flow_loss import Errors, spread_levels
from cfgen.train.flow_matching_stage import (
    FlowMatchingSettings,
    FlowMatchingStage,
)
from cfgen.train.loop import train
from cfgen.train.recall import RecallProbe
from cfgen.train.shots import choose_chunks, shot_starts
from cfgen.train.stage import LoopSettings
from cfgen.train.tokenizer_stage import train_tokenizer
from cfgen.train.training_memory import MemorySettings, draw_policy, training_memory
from cfgen.train.vae_clips import draw_clips, draw_openings
from cfgen.train.vae_stage import VaeSettings, VaeStage, _steps

VAE = VaeSettings(
    texture_channels=4,
    encoder_width=8,
    decoder_widths=(8, 8, 8, 8),
    crop=(32, 32),
    frames=5,
    films=1,
)
BASE = FlowMatchingSettings(
    dim=24,
    ffn_dim=32,
    num_heads=2,
    num_layers=2,
    text_dim=16,
    text_layers=1,
    text_ffn=16,
    families=2,
    members=2,
    chunks=(1, 2, 4, 6),
    batches=(2, 2, 1, 1),
    trained=(1, 2, 2, 2),
    draws=2,
    first_draws=3,
    probe_films=1,
)


@pytest.fixture
def base_stage(tmp_path: Path) -> FlowMatchingStage:
    torch.manual_seed(0)
    store = LatentStore(
        tmp_path / "latents",
        TinyAutoencoder(4, 8, (8, 8, 8, 8)),
        width=80,
        height=48,
    )
    tokenizer = train_tokenizer(tmp_path / "model", captions=300)
    return FlowMatchingStage(BASE, MemorySettings(), store, tokenizer, Exporter(tmp_path))


def test_vae_stage_starts_from_latents_of_unit_moments() -> None:
    stage = VaeStage(VAE, Path("unused"))
    latents = stage.vae.encode(
        stage.batch(-1)[0]
    ).detach()  # the batch that the start was fitted to
    flat = latents.transpose(0, 2).flatten(1)
    assert flat.mean(1).abs().max() < 0.05
    assert (flat.std(1) - 1).abs().max() < 0.05


def test_vae_stage_repeats_a_step_exactly() -> None:
    stage = VaeStage(VAE, Path("unused"))
    first, again, other = (stage.loss(step, step)[0].item() for step in (3, 3, 4))
    assert first == again
    assert first != other


def test_vae_stage_exports_what_loads_strictly(tmp_path: Path) -> None:
    stage = VaeStage(VAE, tmp_path)
    stage.export(dict(stage.modules.named_parameters()))
    state = load_file(tmp_path / "tae.safetensors")
    vae = TinyAutoencoder.for_weights(state)
    vae.load_state_dict(state)
    assert vae.latent_channels == 4 + SEMANTIC_CHANNELS
    assert load_tiny(tmp_path / "tae.safetensors").semantic_channels == SEMANTIC_CHANNELS


@pytest.mark.parametrize("said", ["-1", "many", "12", "400"])
def test_a_header_that_cannot_be_is_refused(tmp_path: Path, said: str) -> None:
    stage, path = VaeStage(VAE, tmp_path), tmp_path / "tae.safetensors"
    stage.export(dict(stage.modules.named_parameters()))
    save_file(load_file(path), path, metadata={SEMANTIC_HEADER: said})
    with pytest.raises(CheckpointError, match=rf"{SEMANTIC_HEADER} is '{said}'"):
        load_tiny(path)


@pytest.fixture
def model_folder(tmp_path: Path) -> Path:
    """A model that has been trained a little, as far as the next stage can tell."""
    folder = tmp_path / "model"
    vae = VaeStage(SMALL_VAE, folder)
    vae.export(dict(vae.modules.named_parameters()))
    store = LatentStore(
        tmp_path / "latents", load_tiny(folder / "tae.safetensors"), width=80, height=48
    )
    tokenizer = train_tokenizer(folder, captions=300)
    base = FlowMatchingStage(BASE, MemorySettings(), store, tokenizer, Exporter(folder, 8))
    for parameter in base.modules.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.1)
    base.export(dict(base.modules.named_parameters()))
    return folder


SMALL_VAE = dataclasses.replace(VAE, patch_size=1, width=80, height=48)
DECODER = DecoderSettings(films=2, crop=(32, 16))


def test_decoder_stage_learns_from_predictions_and_from_a_share_of_truths(
    model_folder: Path,
) -> None:
    def loss(step: int, **changed: object) -> float:
        own = dataclasses.replace(DECODER, **changed)  # type: ignore[arg-type]
        return DecoderStage(SMALL_VAE, own, model_folder).loss(step, step)[0].item()

    made, true = (loss(3, true_share=share) for share in (0.0, 1.0))
    assert made == loss(3, true_share=0.0)
    assert made != loss(4, true_share=0.0)
    assert true != made
    assert true == loss(3, true_share=1.0, noise=(0.9, 0.9))
    # hardly any noise: the prediction is the truth, and as there the prompt does not matter
    assert loss(3, true_share=0.0, noise=(1e-6, 1e-6)) == pytest.approx(true, rel=1e-3)
    assert made != loss(3, true_share=0.0, guidance=(3.0, 3.0))


@pytest.mark.parametrize("crop", [(32, 20), (4, 16), (0, 16)])
def test_decoder_stage_refuses_crops_that_cut_cells(crop: tuple[int, int]) -> None:
    own = dataclasses.replace(DECODER, crop=crop)
    with pytest.raises(UsageError, match="multiples of 8 pixels"):
        DecoderStage(SMALL_VAE, own, Path("unused"))


@pytest.mark.usefixtures("own_accelerator")
def test_decoder_stage_changes_the_decoder_alone(model_folder: Path, tmp_path: Path) -> None:
    before = load_tiny(model_folder / "tae.safetensors")
    kept = (model_folder / "diffusion_pytorch_model.safetensors").read_bytes()
    stage = DecoderStage(SMALL_VAE, DECODER, model_folder)
    loop = LoopSettings(steps=2, warmup=0, decay=0.0, log_every=1, ema=0.0)
    assert len(list(train(stage, tmp_path, loop, minutes=5))) == 2
    after = load_tiny(model_folder / "tae.safetensors")
    assert encoder_digest(after) == encoder_digest(before)
    changed = [
        name for name, weight in after.state_dict().items()
        if not torch.equal(weight, before.state_dict()[name])
    ]  # fmt: skip
    assert changed
    assert all(name.startswith("decoder.") for name in changed)
    assert (model_folder / "diffusion_pytorch_model.safetensors").read_bytes() == kept
    names = {name.split(".")[1] for name in load_file(tmp_path / "decoder" / _shard(tmp_path))}
    assert names <= {"vae", "0", "1"}  # the generator is not kept again and again


def _shard(work: Path) -> str:
    first = json.loads((work / "decoder" / "state.json").read_text())["shards"][0]
    return str(first)


def test_crops_of_openings_lie_on_whole_cells() -> None:
    drawn = draw_openings(
        *("test", 1),
        films=3,
        crops_per_film=4,
        crop=(32, 16),
        size=(80, 48),
        stride=8,
        cut_share=0.5,
    )
    assert drawn.clips.video.shape == (3, 21, 48, 80, 3)
    assert drawn.clips.semantics.shape == (3, 6, SEMANTIC_CHANNELS, 6, 10)
    assert [film for film, _, _ in drawn.corners] == [0] * 4 + [1] * 4 + [2] * 4
    assert all(0 <= y <= 4 and 0 <= x <= 6 for _, y, x in drawn.corners)
    assert len(set(drawn.corners)) > 6


@pytest.mark.parametrize(("share", "places"), [(0.0, 1), (1.0, 2)])
def test_openings_cut_to_another_place_in_a_share_of_films(share: float, places: int) -> None:
    drawn = draw_openings(
        "test",
        2,
        films=4,
        crops_per_film=1,
        crop=(32, 16),
        size=(80, 48),
        stride=8,
        cut_share=share,
    )
    assert {len({shot.place for shot in film.shots}) for film in drawn.films} == {places}
    assert {film.chunks for film in drawn.films} == {2}


def test_base_stage_repeats_a_step_exactly(base_stage: FlowMatchingStage) -> None:
    first, again, other = (base_stage.loss(step, step)[0].item() for step in (5, 5, 6))
    assert first == again
    assert first != other


RECORDED = (2.83791, 2.818736, 2.643561, 2.639343, 2.57904, 2.499699)
"""Losses of a few steps; another recipe, or another rollout, gives others."""


def test_base_stage_gives_the_recorded_losses(base_stage: FlowMatchingStage) -> None:
    """Films of every length, own and noisy context, given first frames; two optimizers."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in base_stage.generator.parameters():
            if parameter.abs().sum() == 0:
                parameter.normal_(std=0.1)
    optimizers, losses = base_stage.optimizers(), []
    for step in range(len(RECORDED)):
        loss, _ = base_stage.loss(step, step)
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        losses.append(loss.item())
    assert losses == pytest.approx(RECORDED, rel=2e-4)


def test_base_stage_first_flow_is_zero(base_stage: FlowMatchingStage) -> None:
    """With the head at zero the loss is the mean square of noise - x0: about 1 + the latents'."""
    loss, figures = base_stage.loss(0, 0)
    assert loss.item() > 0.5
    told = {"all", "returning", "subject", "labels"}
    assert set(figures) <= told | {f"crop_{name}" for name in told}


def test_gradients_reach_every_parameter(base_stage: FlowMatchingStage) -> None:
    with torch.no_grad():  # what starts at zero would hide everything behind it
        for parameter in base_stage.modules.parameters():
            if parameter.abs().sum() == 0:
                parameter.normal_(std=0.1)
    loss = sum(base_stage.loss(step, step)[0] for step in range(3))
    assert isinstance(loss, torch.Tensor)
    loss.backward()
    untouched = [
        name
        for name, p in base_stage.modules.named_parameters()
        if p.grad is None or p.grad.abs().sum() == 0
    ]
    assert untouched == []


def test_later_chunks_train_the_commit_pass(base_stage: FlowMatchingStage) -> None:
    """The clean chunk's time embedding (t = 0) gets a gradient only through committed pages."""
    with torch.no_grad():
        for parameter in base_stage.generator.parameters():
            if parameter.abs().sum() == 0:
                parameter.normal_(std=0.1)
    seen: list[torch.Tensor] = []

    def watch(_module: object, _inputs: object, output: torch.Tensor) -> None:
        output.retain_grad()
        seen.append(output)

    base_stage.generator.time_embedding.register_forward_hook(watch)
    base_stage.settings = dataclasses.replace(BASE, shares=(0, 1, 0, 0))
    base_stage.loss(2, 2)[0].backward()
    denoise, commit = seen[0], seen[1]
    assert denoise.grad is not None
    assert commit.grad is not None
    assert commit.grad.abs().sum() > 0


def test_a_given_frame_is_committed_and_what_follows_is_denoised_after_it(
    base_stage: FlowMatchingStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    base_stage.settings = dataclasses.replace(BASE, given_share=1.0, crops=0)
    done: list[tuple[str, int]] = []
    denoise, commit = base_stage._denoise, base_stage._committed

    def noted(name: str, work: Callable[..., object]) -> Callable[..., object]:
        def call(part: FilmBatch, *rest: object) -> object:
            done.append((name, part.latents.shape[1]))
            return work(part, *rest)

        return call

    monkeypatch.setattr(base_stage, "_denoise", noted("denoise", denoise))
    monkeypatch.setattr(base_stage, "_committed", noted("commit", commit))
    loss, _ = base_stage.loss(0, 0)
    assert done[:2] == [("commit", 1), ("denoise", 2)]
    assert {frames for _, frames in done[3:]} <= {3}
    loss.backward()


def test_the_change_of_an_error_over_time_counts(base_stage: FlowMatchingStage) -> None:
    batch = base_stage.store.family(0, 2, [0, 1])
    blank = torch.zeros_like(batch.subjects[:, :3])
    part = FilmBatch(batch.films, batch.latents[:, :3], blank, blank)
    level, moving = torch.ones(2, 3, 4, 1, 1), torch.ones(2, 3, 4, 1, 1)
    moving[:, 1] = -1
    base_stage.settings = dataclasses.replace(BASE, motion_weight=2)
    for error, expected in ((level, 1 / 3), (moving, (1 + 2 * 2) / 3)):
        errors = Errors(base_stage._weights)
        errors.add(error.expand(-1, -1, -1, 6, 10), part.subjects, part.returns, draws=1)
        assert float(errors.total()[0]) == pytest.approx(expected)


def test_chunks_that_return_are_chosen_most(base_stage: FlowMatchingStage) -> None:
    structure = Structure(((0, 1, "cut"), (1, 3, "cut"), (2, 3, "cut"), (1, 3, "cut")))
    film = film_of(structure, 0, 0)
    returns = torch.from_numpy(returning_cells(film, 3, 5))[None].float()
    batch = FilmBatch([film], torch.zeros(1, 30, 1, 3, 5), returns, returns)
    starts = shot_starts(film)
    assert starts == {0, 1, 4, 7}
    rng = np.random.default_rng(0)
    drawn = [choose_chunks(batch, starts, 2, rng) for _ in range(400)]
    share = [sum(chunk in chosen for chosen in drawn) / len(drawn) for chunk in range(10)]
    assert share[7] > 0.5
    assert share[7] > share[1] > share[2] > 0.02
    assert all(len(chosen) == 2 for chosen in drawn)


def latents_of_places(_probe: RecallProbe, films: Sequence[Film], _kind: str) -> torch.Tensor:
    """Noise that each place has of its own, [B, F, 4, 6, 10]."""
    clips = []
    for film in films:
        seeds = [film.places[shot.place].seed for shot in film.shots for _ in range(shot.chunks)]
        noise = [torch.Generator().manual_seed(seed) for seed in seeds]
        clips.append(torch.cat([torch.randn(3, 4, 6, 10, generator=each) for each in noise]))
    return torch.stack(clips)


def test_recall_measures_what_slow_memory_alone_can_tell(
    base_stage: FlowMatchingStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Own and foreign past differ only where A was shown, which fast memory has long forgotten.

    Two layers carry what they read of A one chunk further, and the film is away for four.
    """
    monkeypatch.setattr(RecallProbe, "_latents", latents_of_places)
    memories: list[PagedMemory] = []

    def noted(*arguments: object) -> PagedMemory:
        memories.append(training_memory(*arguments))  # type: ignore[arg-type]
        return memories[-1]

    monkeypatch.setattr("cfgen.train.recall.training_memory", noted)
    blank = base_stage.measure()
    assert [memory.frames(0)[:4] for memory in memories] == [[0, 1, 2, 6]] * 3, "A begins at 6"
    assert blank["own_0.97"] == blank["foreign_0.97"] == blank["never_left_0.97"], "zero flow"
    with torch.no_grad():
        for parameter in base_stage.generator.parameters():
            if parameter.abs().sum() == 0:
                parameter.normal_(std=0.1)
    figures = base_stage.measure()
    for level in ("0.97", "0.80", "0.50"):
        assert figures[f"own_{level}"] != figures[f"foreign_{level}"]
        assert figures[f"own_{level}"] != figures[f"never_left_{level}"]
    forgetful = RecallProbe(base_stage.store, MemorySettings(slow=0), 1)
    without = forgetful(base_stage.generator, base_stage.text_encoder)
    assert without["own_0.97"] == without["foreign_0.97"], "nothing of A is left without it"


def test_latent_store_reads_back_what_it_encoded(tmp_path: Path) -> None:
    vae = TinyAutoencoder(4, 8, (8, 8, 8, 8))
    store = LatentStore(tmp_path, vae, width=80, height=48)
    first = store.family(3, 2, [1, 2])
    again = LatentStore(tmp_path, vae, width=80, height=48).family(3, 2, [1, 2])
    assert first.latents.shape == (2, 6, 4, 6, 10)
    assert torch.equal(first.latents, again.latents)
    assert 0 < first.subjects.mean() < 1
    assert not first.latents[0].equal(first.latents[1])


def test_semantic_channels_of_films_are_the_worlds_own(tmp_path: Path) -> None:
    vae = TinyAutoencoder(4 + SEMANTIC_CHANNELS, 8, (8, 8, 8, 8))
    plain = LatentStore(tmp_path / "plain", vae, width=80, height=48).family(3, 2, [1])
    vae.semantic_channels = SEMANTIC_CHANNELS
    told = LatentStore(tmp_path / "told", vae, width=80, height=48).family(3, 2, [1])
    assert torch.equal(plain.latents[:, :, :4], told.latents[:, :, :4])
    film = told.films[0]
    known = semantic_channels(film, range(0, film.frames, 4), *told.latents.shape[-2:])
    assert np.allclose(told.latents[0, :, 4:], known, atol=1e-3)


def test_films_have_no_other_semantic_channels(tmp_path: Path) -> None:
    vae = TinyAutoencoder(8, 8, (8, 8, 8, 8))
    vae.semantic_channels = 3
    with pytest.raises(CheckpointError, match="3 semantic channels"):
        LatentStore(tmp_path, vae)


def test_tokenizer_is_the_same_every_time_and_knows_its_words(tmp_path: Path) -> None:
    one = train_tokenizer(tmp_path / "a", captions=300)
    train_tokenizer(tmp_path / "b", captions=300)
    names = ("tokenizer/tokenizer.json", "mini.json")
    assert all(
        (tmp_path / "a" / n).read_bytes() == (tmp_path / "b" / n).read_bytes() for n in names
    )
    assert one.encode("Balloon").tokens == ["balloon"]


def test_a_stage_begins_from_a_model_folder(base_stage: FlowMatchingStage, tmp_path: Path) -> None:
    base_stage.export(dict(base_stage.modules.named_parameters()))
    train_tokenizer(tmp_path, captions=300)
    with torch.no_grad():
        for parameter in base_stage.modules.parameters():
            parameter.zero_()
    exported = load_generator(tmp_path, untrained=True).state_dict()
    base_stage.begin_from(tmp_path)
    begun = base_stage.generator.state_dict()
    assert all(torch.equal(begun[name], tensor) for name, tensor in exported.items())
    assert begun["blocks.0.self_attn.q.weight"].any()


def test_a_model_of_other_sizes_is_no_start(base_stage: FlowMatchingStage, tmp_path: Path) -> None:
    base_stage.export(dict(base_stage.modules.named_parameters()))
    train_tokenizer(tmp_path, captions=300)
    wider = dataclasses.replace(BASE, ffn_dim=48)
    tokenizer = base_stage.text_encoder.tokenizer
    other = FlowMatchingStage(
        wider, MemorySettings(), base_stage.store, tokenizer, Exporter(tmp_path)
    )
    with pytest.raises(CheckpointError, match="has other sizes"):
        other.begin_from(tmp_path)


LARGER = MemorySettings(far_share=0.5, framepack_share=0.5, far=("2:1", "all:4"))


def test_larger_patches_begin_with_the_usual_kernel_and_are_trained(
    base_stage: FlowMatchingStage, tmp_path: Path
) -> None:
    """From a model that has none; what it exports has them, and loads."""
    torch.manual_seed(1)
    with torch.no_grad():  # a head of zeros would learn alone
        for parameter in base_stage.generator.parameters():
            if not parameter.any():
                parameter.normal_(std=0.1)
    base_stage.export(dict(base_stage.modules.named_parameters()))
    tokenizer = train_tokenizer(tmp_path, captions=300)
    stage = FlowMatchingStage(BASE, LARGER, base_stage.store, tokenizer, Exporter(tmp_path))
    stage.begin_from(tmp_path)
    usual, weights = stage.generator.patch_embedding, stage.generator.state_dict()
    for times, count in ((2, 8), (4, 64)):
        kernel = weights[f"patch_embedding_{times}x.weight"]
        assert kernel.shape[2:] == (times, 2 * times, 2 * times)
        assert torch.equal(kernel[:, :, 0, :2, :2], usual.weight[:, :, 0] / count)
        assert torch.equal(kernel[:, :, -1, -2:, -2:], usual.weight[:, :, 0] / count)
        assert torch.equal(weights[f"patch_embedding_{times}x.bias"], usual.bias)
    for step in range(6):
        stage.loss(step, step)[0].backward()
    for times in (2, 4):
        gradient = stage.generator.get_parameter(f"patch_embedding_{times}x.weight").grad
        assert gradient is not None
        assert gradient.any()
    stage.export(dict(stage.modules.named_parameters()))
    assert load_generator(tmp_path, untrained=True).geometry.larger_patches == (2, 4)


def test_shares_of_zero_draw_what_they_did_and_others_what_they_say() -> None:
    rng, same = np.random.default_rng(3), np.random.default_rng(3)
    plain, none = MemorySettings(), MemorySettings(far_share=0.0, framepack_share=0.0)
    drawn = [draw_policy(plain, rng, 9) for _ in range(200)]
    assert drawn == [draw_policy(none, same, 9) for _ in range(200)]
    assert plain.patches == ()
    some = MemorySettings(far_share=0.2, framepack_share=0.1)
    found = Counter(draw_policy(some, rng, 9).policy for _ in range(2000))
    assert 0.25 < found["compressed"] / 2000 < 0.35
    assert some.patches == (2, 4)
    assert MemorySettings(far_share=0.2).patches == (4,)


def test_an_autoencoder_is_trained_on(tmp_path: Path) -> None:
    stage = VaeStage(VAE, tmp_path)
    stage.export(dict(stage.modules.named_parameters()))
    other = VaeStage(VAE, tmp_path)
    with torch.no_grad():
        for parameter in other.vae.parameters():
            parameter.zero_()
    other.begin_from(tmp_path)
    assert (other.vae.decoder[1].weight - stage.vae.decoder[1].weight).abs().max() < 0.01


def test_clips_are_told_apart_by_what_they_show() -> None:
    one, again, other = (
        draw_clips(
            *("test", seed),
            films=2,
            crops_per_film=2,
            frames=5,
            crop=(64, 32),
            size=(160, 96),
            stride=16,
        )
        for seed in (1, 1, 2)
    )
    assert one.video.shape == (4, 5, 32, 64, 3)
    assert one.objects.shape == (4, 5, 32, 64)
    assert one.semantics.shape == (4, 2, SEMANTIC_CHANNELS, 2, 4)
    assert np.array_equal(one.semantics, again.semantics)
    assert np.array_equal(one.video, again.video)
    assert not np.array_equal(one.video, other.video)
    assert 0.1 < one.objects.mean() < 0.9


def test_clips_show_cuts_fades_and_rests() -> None:
    """Of the changes from frame to frame some are cuts, and some clips stand still."""
    clips = draw_clips(
        "test", films=24, crops_per_film=1, frames=9, crop=(96, 96), size=(160, 96), stride=16
    )
    change = np.abs(np.diff(clips.video.astype(int), axis=1)).mean((2, 3, 4))
    assert 2 <= (change.max(1) > 20).sum() <= 16
    assert (change.max(1) < 2).any()
    moving = (change > 2).all(1)
    assert moving.any()


def test_a_cut_begins_a_latent_frame_of_a_clip() -> None:
    """As in a film: frame 0 of a clip is one latent frame, then every four frames are one."""
    clips = draw_clips(
        "cuts", films=48, crops_per_film=1, frames=9, crop=(96, 96), size=(160, 96), stride=16
    )
    change = np.abs(np.diff(clips.video.astype(int), axis=1)).mean((2, 3, 4))
    assert {int(at) for at in np.argwhere(change > 25)[:, 1]} == {0, 4}


def test_without_its_training_an_encoder_stands_still(tmp_path: Path) -> None:
    stage = VaeStage(dataclasses.replace(VAE, train_encoder=False), tmp_path)
    before = encoder_digest(stage.vae)
    decoder = stage.vae.decoder[1].weight.clone()
    optimizers = stage.optimizers()
    stage.loss(0, 0)[0].backward()
    for optimizer in optimizers:
        optimizer.step()
    assert encoder_digest(stage.vae) == before
    assert not torch.equal(stage.vae.decoder[1].weight, decoder)


def test_frames_of_a_latent_begin_alike() -> None:
    """What stands still need not learn to: an untrained decoder makes each group of four alike."""
    stage = VaeStage(VAE, Path("unused"))
    channels = stage.vae.latent_channels
    latents = torch.randn(1, 1, channels, 2, 2).expand(1, 9, channels, 2, 2)
    with torch.no_grad():
        frames = stage.vae.decode(latents)[0, -8:]
    assert (frames - frames[:1]).abs().max() < 1e-3


def test_pixels_of_objects_count_more() -> None:
    stage = VaeStage(dataclasses.replace(VAE, objects=3.0), Path("unused"))
    _, weight, _ = stage.batch(5)
    assert weight.mean() == pytest.approx(1)
    low, high = weight.unique().tolist()
    assert high == pytest.approx(4 * low)


def test_the_decoder_does_not_form_the_semantic_channels() -> None:
    """They learn from the world alone: without that loss, nothing reaches their part of it."""
    stage = VaeStage(dataclasses.replace(VAE, semantics=0.0), Path("unused"))
    stage.loss(0, 0)[0].backward()
    grad = stage.vae.encoder[-1].weight.grad
    assert grad[: VAE.texture_channels].abs().sum() > 0
    assert grad[VAE.texture_channels :].abs().sum() == 0


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_the_decoder_reads_semantic_channels_of_the_world_or_of_the_encoder(share: float) -> None:
    """A generator makes those of the world; a picture that is given has those of the encoder."""
    stage = VaeStage(dataclasses.replace(VAE, noise=0.0, true_semantics=share), Path("unused"))
    read: list[torch.Tensor] = []
    decode = stage.vae.decode
    stage.vae.decode = lambda latents: read.append(latents) or decode(latents)  # type: ignore[method-assign]
    stage.loss(0, 0)
    video, _, known = stage.batch(0)
    made = stage.vae.encode(video)[:, :, VAE.texture_channels :]
    assert torch.equal(read[0][:, :, VAE.texture_channels :], known if share else made)


def test_edges_are_steps_between_neighbours() -> None:
    error = torch.tensor([[1.0, 4.0, 2.0], [0.0, 0.0, 5.0]])
    assert _steps(error, -1).tolist() == [[3.0, -2.0, 0.0], [0.0, 5.0, 0.0]]
    assert _steps(error, -2).tolist() == [[-1.0, -4.0, 3.0], [0.0, 0.0, 0.0]]


def test_films_make_way_for_new_ones(base_stage: FlowMatchingStage) -> None:
    """What is learnt by heart is of no use: a film is drawn a few times and then no more."""

    def drawn(step: int) -> set[int]:
        steps = range(step, step + 8)
        batches = (base_stage._films(each, each, rng_for("films", each))[0] for each in steps)
        return {film.seed for batch in batches for film in batch.films}

    assert drawn(0) & drawn(8)
    assert not drawn(0) & drawn(10_000)


def test_batches_of_a_step_are_of_one_family(base_stage: FlowMatchingStage) -> None:
    """They take equally long, so that no process waits for another."""

    def shots(draw: int) -> tuple[tuple[int, int], ...]:
        films = base_stage._films(0, draw, rng_for("films", draw))[0].films
        seeds.append(frozenset(film.seed for film in films))
        return tuple((shot.place, shot.chunks) for shot in films[0].shots)

    seeds: list[frozenset[int]] = []
    base_stage.micro_batches = 4
    structures = [{shots(4 * step + i) for i in range(4)} for step in range(6)]
    assert all(len(each) == 1 for each in structures)
    assert len(set[tuple[tuple[int, int], ...]]().union(*structures)) > 2
    assert any(len(set(seeds[4 * i : 4 * i + 4])) > 1 for i in range(6))


def test_draws_of_a_film_are_spread_over_the_noise_levels() -> None:
    levels = spread_levels(4, 3, 1.0, torch.Generator().manual_seed(0))
    quarters = (levels.reshape(4, 3) * 4).int()
    assert quarters.sort(0).values.tolist() == [[i] * 3 for i in range(4)]

"""The stages: random choices derive from the step, and gradients reach all that is trained."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from cfgen.checkpoint.load import load_generator
from cfgen.errors import CheckpointError
from cfgen.model.vae import TinyAutoencoder
from cfgen.train.base_stage import BaseSettings, BaseStage, shares, stall_points, stalled
from cfgen.train.export import Exporter
from cfgen.train.latents import LatentStore
from cfgen.train.tokenizer_stage import train_tokenizer
from cfgen.train.vae_stage import VaeSettings, VaeStage
from cfgen.train.world import camera_path, rng_for, sample_film

VAE = VaeSettings(
    latent_channels=4, encoder_width=8, decoder_widths=(8, 8, 8, 8), crop=32, frames=5, films=1
)
BASE = BaseSettings(
    dim=24,
    ffn_dim=32,
    num_heads=2,
    num_layers=2,
    text_dim=16,
    text_layers=1,
    text_ffn=16,
    batches=(2, 1),
    chunks=(2, 3),
    films=4,
)


@pytest.fixture
def base_stage(tmp_path: Path) -> BaseStage:
    torch.manual_seed(0)
    store = LatentStore(
        tmp_path / "latents",
        TinyAutoencoder(4, 8, (8, 8, 8, 8)),
        latent_frames=9,
        width=64,
        height=48,
    )
    return BaseStage(
        BASE, store, train_tokenizer(tmp_path / "model", captions=300), Exporter(tmp_path)
    )


def test_vae_stage_starts_from_latents_of_unit_moments() -> None:
    stage = VaeStage(VAE, Path("unused"))
    latents = stage.vae.encode(stage.batch(-1)).detach()  # the batch that the start was fitted to
    flat = latents.transpose(0, 2).flatten(1)
    assert flat.mean(1).abs().max() < 0.05
    assert (flat.std(1) - 1).abs().max() < 0.05


def test_vae_stage_repeats_a_step_exactly() -> None:
    stage = VaeStage(VAE, Path("unused"))
    first, again, other = (stage.loss(step)[0].item() for step in (3, 3, 4))
    assert first == again
    assert first != other


def test_vae_stage_exports_what_loads_strictly(tmp_path: Path) -> None:
    stage = VaeStage(VAE, tmp_path)
    stage.export(dict(stage.modules.named_parameters()))
    state = load_file(tmp_path / "tae.safetensors")
    vae = TinyAutoencoder.for_weights(state)
    vae.load_state_dict(state)
    assert vae.latent_channels == 4


def test_base_stage_repeats_a_step_exactly(base_stage: BaseStage) -> None:
    first, again, other = (base_stage.loss(step)[0].item() for step in (5, 5, 6))
    assert first == again
    assert first != other


def test_base_stage_first_flow_is_zero(base_stage: BaseStage) -> None:
    """With the head at zero the loss is the mean square of noise - x0: about 1 + the latents'."""
    loss, figures = base_stage.loss(0)
    assert loss.item() > 0.5
    assert set(figures) == {"first", "later"}


def test_gradients_reach_every_parameter(base_stage: BaseStage) -> None:
    with torch.no_grad():  # what starts at zero would hide everything behind it
        for parameter in base_stage.modules.parameters():
            if parameter.abs().sum() == 0:
                parameter.normal_(std=0.1)
    loss = sum(base_stage.loss(step)[0] for step in range(3))
    assert isinstance(loss, torch.Tensor)
    loss.backward()
    untouched = [
        name
        for name, p in base_stage.modules.named_parameters()
        if p.grad is None or p.grad.abs().sum() == 0
    ]
    assert untouched == []


def test_later_chunks_train_the_commit_pass(base_stage: BaseStage) -> None:
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
    base_stage.loss(1)[0].backward()
    denoise, commit = seen[0], seen[1]
    assert denoise.grad is not None
    assert commit.grad is not None
    assert commit.grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("at", "count", "order"),
    [
        (0, 3, [0, 0, 0, 1, 2, 3, 4, 5, 6]),
        (3, 3, [0, 1, 2, 2, 2, 2, 3, 4, 5]),
        (6, 3, [*range(6), 5, 5, 5]),
        (0, 6, [0, 0, 0, 0, 0, 0, 1, 2, 3]),
        (3, 6, [0, 1, 2, 2, 2, 2, 2, 2, 2]),
    ],
)
def test_a_stalled_film_goes_on_where_it_stood(at: int, count: int, order: list[int]) -> None:
    assert stalled(9, at, count) == order


def test_a_camera_that_turns_back_stalls_where_it_rests() -> None:
    films = [sample_film(i) for i in range(60)]
    rests = 0
    for film in films:
        points = stall_points(film, 30, 3)
        if "-" not in film.camera:
            assert points == list(range(0, 27, 3))
            continue
        path = camera_path(film, 120)
        for at in points[1:]:
            before, after = path[4 * at - 4] - path[4 * at - 12], path[4 * at + 8] - path[4 * at]
            assert before * after <= 0, "it goes back, or rests on"
            assert at % 3 == 0
        rests += len(points) > 1
    assert rests > 5


def test_a_stall_is_committed_and_not_learned(base_stage: BaseStage) -> None:
    base_stage.settings = dataclasses.replace(BASE, stall_share=1.0, drop_text=0.0)
    lengths = set()
    for seed in range(12):
        clips = base_stage._clips(rng_for("stall", seed))
        for latents, weight in zip(clips.latents, clips.weight, strict=True):
            still = [i for i in range(1, len(latents)) if latents[i].equal(latents[i - 1])]
            unlearned = [i for i in range(len(latents)) if not weight[i].any()]
            lengths.add(len(unlearned))
            assert unlearned == list(range(unlearned[0], unlearned[0] + len(unlearned)))
            assert unlearned[0] % 3 == 0
            assert unlearned[-1] < len(latents) - 1
            assert set(still) <= set(unlearned)
            assert len(still) >= len(unlearned) - 1
    assert lengths == {3, 6}


def test_chosen_films_are_drawn_by_their_share() -> None:
    chosen = np.array([True, False, False, True, False])
    assert shares(chosen, 0.7) == pytest.approx([0.35, 0.1, 0.1, 0.35, 0.1])
    assert shares(np.array([False, False]), 0.7) == pytest.approx([0.15, 0.15])


def test_the_change_of_an_error_over_time_counts(base_stage: BaseStage) -> None:
    weight = torch.ones(1, 2, 1, 1, 1)
    level, moving = torch.ones(1, 2, 4, 1, 1), torch.ones(1, 2, 4, 1, 1)
    moving[:, 1] = -1
    assert float(base_stage._squares(level, weight)) == pytest.approx(1 / 3)
    assert float(base_stage._squares(moving, weight)) == pytest.approx((1 + 2 * 2) / 3)


def test_latent_store_reads_back_what_it_encoded(tmp_path: Path) -> None:
    vae = TinyAutoencoder(4, 8, (8, 8, 8, 8))
    store = LatentStore(tmp_path, vae, latent_frames=9, width=64, height=48)
    first, mask = store.clips([1, 2], 3)
    again, _ = LatentStore(tmp_path, vae, latent_frames=9, width=64, height=48).clips([1, 2], 3)
    assert first.shape == (2, 3, 4, 6, 8)
    assert torch.equal(first, again)
    assert 0 < mask.mean() < 1


def test_tokenizer_is_the_same_every_time_and_knows_its_words(tmp_path: Path) -> None:
    one = train_tokenizer(tmp_path / "a", captions=300)
    train_tokenizer(tmp_path / "b", captions=300)
    names = ("tokenizer/tokenizer.json", "mini.json")
    assert all(
        (tmp_path / "a" / n).read_bytes() == (tmp_path / "b" / n).read_bytes() for n in names
    )
    assert one.encode("Balloon").tokens == ["balloon"]


def test_a_stage_begins_from_a_model_folder(base_stage: BaseStage, tmp_path: Path) -> None:
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


def test_a_model_of_other_sizes_is_no_start(base_stage: BaseStage, tmp_path: Path) -> None:
    base_stage.export(dict(base_stage.modules.named_parameters()))
    train_tokenizer(tmp_path, captions=300)
    wider = dataclasses.replace(BASE, ffn_dim=48)
    other = BaseStage(
        wider, base_stage.store, base_stage.text_encoder.tokenizer, Exporter(tmp_path)
    )
    with pytest.raises(CheckpointError, match="has other sizes"):
        other.begin_from(tmp_path)


def test_an_autoencoder_is_trained_on(tmp_path: Path) -> None:
    stage = VaeStage(VAE, tmp_path)
    stage.export(dict(stage.modules.named_parameters()))
    other = VaeStage(VAE, tmp_path)
    with torch.no_grad():
        for parameter in other.vae.parameters():
            parameter.zero_()
    other.begin_from(tmp_path)
    assert (other.vae.decoder[1].weight - stage.vae.decoder[1].weight).abs().max() < 0.01

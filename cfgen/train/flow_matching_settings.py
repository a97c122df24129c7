"""Values of stage `base`: sizes of the model, films and chunks, weights of the loss."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class FlowMatchingSettings:
    """Values of the stage.

    Attributes:
        dim: width of the generator; `ffn_dim`, `num_heads`, `num_layers`, `text_len` and `text_dim`
            as in `WanConfig`.
        text_layers: layers of the text encoder.
        text_ffn: width of its feed-forward layers.
        lr: peak learning rate of Muon, which the matrices of blocks learn by.
        adam_lr: peak learning rate of AdamW, which everything else learns by.
        families: how many families of films of each length are drawn from at a time.
        members: films of a family; each is encoded when it is first drawn.
        uses: how often a film is drawn, on average, until a new family takes the place of its own.
        chunks: most chunks of films of each length, from stills to long ones; a family has half as
            many or more.
        batches: films of a step, for each of the lengths.
        trained: chunks of a film that are denoised, for each length.
        shares: how often each length is drawn.
        late_shares: the same from step `late_from` on.
        late_from: the step from which long films are drawn more often.
        draws: noise draws of a chosen chunk.
        first_draws: noise draws of a film's first chunk; it has the text to go by and nothing else.
        shift: noise levels are shift u / (1 + (shift - 1) u) for u even in [0, 1].
        return_weight: weight of latent cells that only a memory of the past can know.
        motion_weight: weight of the error's change from one latent frame to the next, where the
            error's own is 1: most of a chunk's error is its layout, hardly any its motion.
        semantic_weight: weight of the error of semantic channels, where that of others is 1.
        label_weight: weight of the error of telling what each cell shows; see `labels`.
        crops: crops round subjects that a step learns from besides; see `crops.py`.
        crop_cells: their rows and columns, in latent cells.
        crop_draws: noise draws of a crop.
        crop_weight: weight of their loss.
        noise_share: share of the chunks that are committed with noise on them.
        noise_strength: highest standard deviation of that noise.
        own_share: share of the chosen chunks that are committed as the model made them in one step.
        own_below: highest noise level from which that is done.
        drop_text: share of the films whose prompts are replaced by the empty one.
        given_share: share of steps whose films begin with a given frame: their first latent frame
            is committed by itself, and the rest of the first chunk is denoised after it.
        probe_films: held-out films on which recall is measured.
        micro_batches: batches of a step that each process makes.
    """

    dim: int = 320
    ffn_dim: int = 1280
    num_heads: int = 5
    num_layers: int = 6
    text_len: int = 64
    text_dim: int = 192
    text_layers: int = 3
    text_ffn: int = 384
    lr: float = 1.5e-3
    adam_lr: float = 1.5e-3
    families: int = 12
    members: int = 24
    uses: float = 3.0
    chunks: tuple[int, int, int, int] = (1, 6, 14, 36)
    batches: tuple[int, int, int, int] = (16, 3, 2, 2)
    trained: tuple[int, int, int, int] = (1, 4, 4, 4)
    shares: tuple[float, float, float, float] = (0.35, 0.35, 0.27, 0.03)
    late_shares: tuple[float, float, float, float] = (0.2, 0.25, 0.35, 0.2)
    late_from: int = 6000
    draws: int = 4
    first_draws: int = 4
    shift: float = 3.0
    return_weight: float = 3.0
    motion_weight: float = 1.0
    semantic_weight: float = 3.0
    label_weight: float = 0.03
    crops: int = 96
    crop_cells: tuple[int, int] = (8, 10)
    crop_draws: int = 2
    crop_weight: float = 0.4
    noise_share: float = 0.4
    noise_strength: float = 0.25
    own_share: float = 0.2
    own_below: float = 0.7
    drop_text: float = 0.08
    given_share: float = 0.1
    probe_films: int = 6
    micro_batches: int = 1

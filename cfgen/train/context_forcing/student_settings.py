"""Values of the stages `dmd` and `cdmd`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from cfgen.errors import UsageError
from cfgen.train.context_forcing.self_rollout import Committed
from cfgen.train.stage import RateName


@dataclass(frozen=True, kw_only=True, slots=True)
class StudentSettings:
    """Values of the stage.

    Attributes:
        seed: of all that is drawn: films, memories, exits, noise.
        student: the model it begins as: a folder or a file, from the work folder on.
        teacher: the real score.
        critic: the fake score begins as it.
        timesteps: of the student's passes, in (0, 1000].
        shift: warps them.
        latent_size: rows and columns of a latent frame.
        targets: chunks that are taught, the last ones of a rollout.
        chunks: chunks of a rollout at first, and at most once the horizon has grown.
        grow: steps over which it grows.
        exits: whether all targets leave the schedule at the same step or each at its own.
        committed: what memory keeps of a target: how it was at its `exit`, or denoised in `full`.
        grad: `frozen`: the past is constant; `replay`: gradients reach the passes that wrote it.
        reach: with `replay`, through `visible` chunks, which targets read, or `all` before them.
        critic_grad: whether the critic learns through its context, too: as `grad`.
        ratio: critic updates to one of the student.
        reuse: critic updates on one rollout, each at other noise levels; a divisor of `ratio`.
        batch: films of a rollout.
        micro_batches: rollouts of an update.
        negative: the prompt that the teacher's guidance pushes away from.
        lr: peak learning rate of the student's AdamW.
        betas: its decays.
        rate: how it changes: `constant`, `trapezoid`, or `cosine` down to `rate_end` of it.
        rate_end: see `rate`.
        critic_lr: learning rate of the critic's AdamW, which is constant.
        critic_betas: its decays.
        weight_decay: of both.
        limiter: whether the critic's steps are held back, see `step_limiter`.
        recompute: whether activations are worked out again instead of kept.
        first_latent: what a contiguous context begins with: `keep` its latent, or `reencode` the
            last picture of that, as the release does; see `window_cut`.
    """

    seed: int = 0
    student: str = "model"
    teacher: str = "model"
    critic: str = "model"
    timesteps: tuple[float, ...] = (1000.0, 750.0, 500.0, 250.0)
    shift: float = 5.0
    latent_size: tuple[int, int] = (12, 20)
    targets: int = 4
    chunks: tuple[int, int] = (4, 4)
    grow: int = 0
    exits: Literal["shared", "own"] = "shared"
    committed: Committed = "exit"
    grad: Literal["frozen", "replay"] = "replay"
    reach: Literal["visible", "all"] = "visible"
    critic_grad: Literal["frozen", "replay"] = "replay"
    ratio: int = 5
    reuse: int = 1
    batch: int = 4
    micro_batches: int = 1
    negative: str = ""
    lr: float = 2e-6
    betas: tuple[float, float] = (0.9, 0.999)
    rate: RateName = "constant"
    rate_end: float = 0.2
    critic_lr: float = 4e-7
    critic_betas: tuple[float, float] = (0.5, 0.95)
    weight_decay: float = 0.01
    limiter: bool = False
    recompute: bool = False
    first_latent: Literal["keep", "reencode"] = "keep"

    def __post_init__(self) -> None:
        first, last = self.chunks
        if not 1 <= self.targets <= first <= last:
            raise UsageError(
                f"chunks must rise from targets ({self.targets}) or more, got {first} to {last}"
            )
        if self.reuse < 1 or self.ratio % self.reuse:
            raise UsageError(f"reuse must divide ratio ({self.ratio}), got {self.reuse}")

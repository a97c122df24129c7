"""`cfgen train --plan`: memory and time of a stage, from its values alone.

Memory is that of one process, time that of all steps. Means stand for what is drawn at random.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from cfgen.checkpoint.networks.geometry import sizes_in
from cfgen.errors import UsageError
from cfgen.memory.slow_fast import SlowFastMemory
from cfgen.model.generator import WanConfig
from cfgen.train.context_forcing.dmd import ScoreSettings
from cfgen.train.context_forcing.error_bank import ErrorSettings
from cfgen.train.context_forcing.lora import LoraSettings
from cfgen.train.context_forcing.student_settings import StudentSettings
from cfgen.train.context_forcing.teacher_parts import DTYPES
from cfgen.train.context_forcing.teacher_stage import TeacherSettings
from cfgen.train.cost import UMT5_XXL, Network
from cfgen.train.film_world.latents import CHUNK_LATENTS
from cfgen.train.film_world.semantics import SEMANTIC_CHANNELS
from cfgen.train.flow_matching_settings import FlowMatchingSettings
from cfgen.train.stage import LoopSettings
from cfgen.train.training_memory import MemorySettings


@dataclass(frozen=True, kw_only=True, slots=True)
class PlanSettings:
    """What a plan reckons with.

    Attributes:
        device: on which time is estimated; see `DEVICES`.
        processes: that train together, each on such a device.
        dim: width of the generator where neither the model's folder nor stage `base` tells it;
            `ffn_dim`, `num_heads`, `num_layers` and `in_dim` likewise.
        stride: pixels along a latent cell.
    """

    device: str = "H100"
    processes: int = 1
    dim: int = 1536
    ffn_dim: int = 8960
    num_heads: int = 12
    num_layers: int = 30
    in_dim: int = 16
    stride: int = 8


@dataclass(frozen=True, slots=True)
class Model:
    """Sizes that a plan is made for.

    Attributes:
        generator: of the generator.
        text: weights of the text encoder.
        source: where they are from.
    """

    generator: WanConfig
    text: int
    source: str


@dataclass(slots=True)
class Plan:
    """Costs of a stage.

    Attributes:
        network: of all its generators.
        loop: its schedule.
        processes: that train together.
        memory: bytes of a process by what takes them.
        aside: bytes that are no part of the sum: what would be, or lies in main memory.
        passes: operations of an average step and process by what makes them.
    """

    network: Network
    loop: LoopSettings
    processes: int
    memory: dict[str, int] = field(default_factory=dict)
    aside: dict[str, int] = field(default_factory=dict)
    passes: dict[str, float] = field(default_factory=dict)

    def hold(self, networks: Mapping[str, Network]) -> None:
        """Count weights, gradients, averages, and the two states that AdamW has of each weight.

        The first network is averaged. Processes may share out averages and states.
        """
        learnt = {name: network.learnt for name, network in networks.items()}
        averaged = next(iter(learnt.values()))
        weights = {n: network.weights_nbytes for n, network in networks.items()}
        self.memory |= {f"weights of the {n}": b for n, b in weights.items()}
        total = sum(learnt.values())
        self.memory["gradients"] = 4 * total
        among = self.processes if self.loop.share_optimizers else 1
        self.memory["optimizer states"] = 4 * 2 * total // among
        self.memory["average"] = 4 * averaged // among

    def keep(self, frames: float, *, recompute: bool | None) -> None:
        """Count activations; what the other choice would take stands aside, if there is one."""
        network, precision = self.network, self.loop.precision
        both = {
            words: network.kept_nbytes(frames, precision, recompute=again)
            for again, words in ((False, "kept"), (True, "worked out again"))
        }
        kept, again = both.values()
        self.memory["activations"] = again if recompute else kept
        if recompute is not None:
            words = "kept" if recompute else "worked out again"
            self.aside[f"activations, {words}"] = both[words]


def model_of(settings: Mapping[str, Any], folder: Path) -> Model:
    """Sizes of the model of a stage.

    Args:
        settings: an object of its class for each section of values.
        folder: of the model; it need not be there.
    """
    base: FlowMatchingSettings | None = settings.get("base")
    plan: PlanSettings = settings.get("plan", PlanSettings())
    text = UMT5_XXL
    if base is not None:
        words = settings["tokenizer"].vocab_size * base.text_dim
        layer = 4 * base.text_dim**2 + 3 * base.text_dim * base.text_ffn
        text = words + base.text_layers * layer
    config = folder / "config.json"
    if config.is_file():
        return Model(sizes_in(config), text, str(config))
    source: Any = base or plan
    names = ("dim", "ffn_dim", "num_heads", "num_layers")
    sizes: dict[str, Any] = {name: getattr(source, name) for name in names}
    channels = plan.in_dim
    if base is not None:
        channels = settings["vae"].texture_channels + SEMANTIC_CHANNELS
        sizes |= {"text_len": base.text_len, "text_dim": base.text_dim}
    generator = WanConfig(in_dim=channels, out_dim=channels, **sizes)
    return Model(generator, text, "section base" if base else "section plan")


def _latent_size(settings: Mapping[str, Any], width: int, height: int) -> tuple[int, int]:
    stride: int = settings.get("plan", PlanSettings()).stride
    return height // stride, width // stride


def _loop(stage: str, settings: Mapping[str, Any]) -> LoopSettings:
    """The schedule of a stage, its precision that of the device that is planned for."""
    loop: LoopSettings = settings[f"{stage}.loop"]
    on_cpu = settings.get("plan", PlanSettings()).device == "CPU"
    return loop.settled(torch.device("cpu" if on_cpu else "cuda"))


def _base(settings: Mapping[str, Any], model: Model, processes: int) -> Plan:
    """Films of several lengths, a few chunks of each denoised, all committed."""
    s: FlowMatchingSettings = settings["base"]
    loop = _loop("base", settings)
    memory: MemorySettings = settings["base.memory"]
    size = _latent_size(settings, settings["vae"].width, settings["vae"].height)
    plan = Plan(Network(model.generator, size), loop, processes)
    early = min(1.0, s.late_from / loop.steps)
    once = commits = 0.0
    kept = 0
    lengths = zip(s.chunks, s.batches, s.trained, s.shares, s.late_shares, strict=True)
    for most, films, trained, share, late in lengths:
        chunks, chance = (1 + most // 2 + most) / 2, early * share + (1 - early) * late
        keys = min(CHUNK_LATENTS * chunks / 2 + CHUNK_LATENTS, _capacity(memory))
        once += chance * films * trained * s.draws * plan.network.forward(CHUNK_LATENTS, keys)
        commits += chance * films * chunks * plan.network.forward(CHUNK_LATENTS, keys)
        kept = max(kept, films * min(trained, most) * (s.draws + 1) * CHUNK_LATENTS)
    times = s.micro_batches
    plan.passes = {"targets": 3 * once * times, "context": times * (commits + 2 * once / s.draws)}
    if s.crops:
        crop = Network(model.generator, s.crop_cells).forward(1, 1)
        plan.passes["crops"] = times * 3 * s.crops * s.crop_draws * crop
    plan.hold({"generator": plan.network})
    plan.memory["text encoder, all of it"] = 20 * model.text
    plan.keep(kept, recompute=None)
    frames = max(
        map(
            lambda films, most: films * min(CHUNK_LATENTS * most, _capacity(memory)),
            s.batches,
            s.chunks,
        )
    )
    plan.memory["caches"] = plan.network.cache_nbytes(frames, loop.precision)
    return plan


def _teacher(settings: Mapping[str, Any], model: Model, processes: int) -> Plan:
    """A target of each film after a context, committed chunk by chunk."""
    s: TeacherSettings = settings["teacher"]
    loop = _loop("teacher", settings)
    memory: MemorySettings = settings["teacher.memory"]
    lora: LoraSettings = settings.get("teacher.lora", LoraSettings())
    if clips := settings.get("teacher.clips"):
        size = _latent_size(settings, clips.width, clips.height)
        chunks, films = clips.latents / CHUNK_LATENTS, float(clips.batch)
    else:
        world = settings["teacher.world"]
        size = _latent_size(settings, settings["vae"].width, settings["vae"].height)
        total = sum(world.shares)
        pairs = [
            (share / total, most, n)
            for share, most, n in zip(world.shares, world.chunks, world.batches, strict=True)
        ]
        chunks = sum(share * 0.75 * most for share, most, _ in pairs)
        films = sum(share * n for share, _, n in pairs)
    network = Network(model.generator, size, lora, still=DTYPES[lora.base])
    plan = Plan(network, loop, processes)
    target = CHUNK_LATENTS * s.target_chunks
    context = (min(s.earliest, chunks - s.target_chunks) + chunks - s.target_chunks) / 2
    keys = _capacity(memory) - CHUNK_LATENTS + target
    times = s.micro_batches * films
    once = times * s.targets * s.draws * plan.network.forward(target, keys)
    plan.passes = {
        "targets": once * (1 + plan.network.backward(recompute=s.recompute)),
        "context": times * context * plan.network.forward(CHUNK_LATENTS, _capacity(memory)),
        "prompts": times * (2 * model.text * model.generator.text_len + plan.network.prompt()),
    }
    plan.hold({"generator": plan.network})
    plan.memory["weights of the text encoder"] = 2 * model.text
    # The first chunk of a shot is committed with gradients, too.
    plan.keep(films * s.targets * s.draws * target, recompute=s.recompute)
    plan.memory["activations"] += plan.network.kept_nbytes(
        films * CHUNK_LATENTS, loop.precision, recompute=False
    )
    plan.memory["caches"] = plan.network.cache_nbytes(films * keys, loop.precision)
    errors: ErrorSettings = settings["teacher.errors"]
    if errors.clean_chance < 1:
        one = 2 * target * model.generator.in_dim * size[0] * size[1]
        plan.aside["error bank, in main memory"] = 2 * errors.grids * errors.size * one
    return plan


def _student(stage: str, settings: Mapping[str, Any], model: Model, processes: int) -> Plan:
    """Rollouts for student and critic, and what is learnt from them."""
    s: StudentSettings = settings[stage]
    loop = _loop(stage, settings)
    score: ScoreSettings = settings.get(f"{stage}.score", ScoreSettings())
    lora: LoraSettings = settings.get(f"{stage}.lora", LoraSettings())
    memory: SlowFastMemory | MemorySettings = settings.get(f"{stage}.slow_fast") or settings.get(
        f"{stage}.memory", MemorySettings()
    )
    plan = Plan(Network(model.generator, s.latent_size, lora), loop, processes)
    forward, times = plan.network.forward, float(s.batch * s.micro_batches)
    backward = plan.network.backward(recompute=s.recompute)
    grown = min(1.0, s.grow / loop.steps) if s.grow else 0.0
    chunks = s.chunks[0] + (1 - grown / 2) * (s.chunks[1] - s.chunks[0]) / 2
    target, capacity = CHUNK_LATENTS * s.targets, min(_capacity(memory), CHUNK_LATENTS * chunks)
    past = chunks - s.targets
    steps = len(s.timesteps)
    at_targets = steps if s.committed == "full" else (steps + 1) / 2
    passes = past * (steps + 1) + s.targets * (at_targets + 1)
    rollout = passes * forward(CHUNK_LATENTS, capacity) + 2 * model.text * model.generator.text_len
    seen = {"none": 0, "contiguous": score.context_frames, "memory": CHUNK_LATENTS * past}
    commits = forward(seen[score.context], capacity)
    joint = target + (0 if score.context == "none" else capacity - CHUNK_LATENTS)
    scored = forward(target, joint if score.score == "joint" else capacity)
    replayed = forward(CHUNK_LATENTS * (chunks - 1), capacity)
    own = forward(target, capacity)
    through = 1 + backward if s.grad == "replay" else 1.0
    taught = 1 + backward if s.critic_grad == "replay" else 1.0
    plan.passes = {
        "rollouts": times * rollout * (1 / s.ratio + 1 / s.reuse),
        "student": times / s.ratio * (replayed * through + own * (1 + backward)),
        "teacher": times / s.ratio * (commits + scored * (2 if score.guidance != 1 else 1)),
        "critic for the student": times / s.ratio * (commits + scored),
        "critic": times * (commits * taught + scored * (1 + backward)),
    }
    still = torch.bfloat16 if loop.precision == "bf16" else torch.float32
    teacher = Network(model.generator, s.latent_size, learns=False, still=still)
    plan.hold({"student": plan.network, "critic": plan.network, "teacher": teacher})
    on_gpu = settings.get("plan", PlanSettings()).device != "CPU"
    plan.memory["weights of the text encoder"] = (2 if on_gpu else 4) * model.text
    frames = target + (CHUNK_LATENTS * (s.chunks[1] - 1) if s.grad == "replay" else 0)
    plan.keep(s.batch * frames, recompute=s.recompute)
    # A replay has the keys and values of everything that was committed.
    every = CHUNK_LATENTS * (s.chunks[1] + s.targets)
    plan.memory["caches"] = plan.network.cache_nbytes(s.batch * every, loop.precision)
    return plan


def _capacity(memory: SlowFastMemory | MemorySettings) -> int:
    """Latent frames that a pass reads."""
    return memory.sink + memory.slow + memory.fast


PLANS: Mapping[str, Callable[[Mapping[str, Any], Model, int], Plan]] = {
    "base": _base,
    "teacher": _teacher,
    "dmd": lambda *given: _student("dmd", *given),
    "cdmd": lambda *given: _student("cdmd", *given),
}
"""Stages that can be planned."""


def plan_of(stage: str, settings: Mapping[str, Any], model: Model) -> Plan:
    """The costs of a stage.

    Raises:
        UsageError: the stage is none of those that can be planned.
    """
    if stage not in PLANS:
        raise UsageError(f"stage {stage} has no plan", f"stages with one: {', '.join(PLANS)}")
    processes: int = settings.get("plan", PlanSettings()).processes
    return PLANS[stage](settings, model, processes)

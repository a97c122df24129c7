"""Everything that can be set, as frozen dataclasses which refuse wrong values all at once.

A configuration lives from the loader to `cfgen.pipeline` and no further: whatever is built from
it takes plain arguments.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Literal

from cfgen.config.audio import AudioConfig
from cfgen.config.begin import BeginConfig, key_of
from cfgen.config.presets import presets_of_order
from cfgen.config.shots import Shot, Shots, told, total_s
from cfgen.config.values import (
    ByteCount,
    Duration,
    Rate,
    Seed,
    Size,
    parse_lora,
    size_text,
)
from cfgen.errors import Problem, UsageError
from cfgen.fields import CHANGES_NO_FRAME, Pattern, Positive, Range, check
from cfgen.memory.compressed import CompressedMemory
from cfgen.memory.policy import Order
from cfgen.memory.recency import RecencyMemory
from cfgen.memory.relax import RelaxMemory
from cfgen.memory.slow_fast import SlowFastMemory
from cfgen.memory.transitions import Transition
from cfgen.memory.window import FullMemory, WindowMemory


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelConfig:
    """The model that renders.

    Each part is named by a path on disk, or as `owner/name[/path/in/the/repository]` in the cache
    of Hugging Face. Parts that are not named are looked for beside the generator.

    Attributes:
        path: The generator: an installed model, a folder, or a file of weights.
        text_encoder: The UMT5 text encoder: a folder or a file.
        tokenizer: The text encoder's tokenizer, where its own file has none.
        vae: The video autoencoder: a folder or a file.
        loras: LoRAs as `PATH` or `PATH:strength`, applied in order.
        lora_alpha: Alpha of LoRAs whose files do not tell it, or None for their rank.
        prefer: Which weights to take of a training state that holds both.
        quantized: Whether quantized weights stay quantized in memory (keep) and are dequantized on
            every use, or are dequantized once, when they are loaded (expand).
        raw_latents: Whether a tiny autoencoder (TAEHV) takes Wan's raw latents, as `lighttaew2_1`
            does, or normalised ones, as `taew2_1`; None where its file settles it.
        vae_tile: Latent cells on the side of the tiles that frames are decoded in, None for whole
            frames as long as memory lasts.
        matmul: Whether inputs are multiplied by dequantized weights, or (native) quantized too and
            multiplied by the stored numbers where the device can: faster, less exact.
        sizes: The sizes that the model was trained for; the first is the default.
        fps: The rate that the model's motion was trained at, in frames per second.
        chunk_latent_frames: Latent frames denoised together.
        longest_s: Playing time that the model was trained for, in seconds, if there is a limit.
        licence: What the model's licence does not allow, in a sentence.
        cpu_frames_per_s: Frames rendered a second on two CPU cores, if measured; for estimates.
    """

    path: str
    text_encoder: str | None = None
    tokenizer: str | None = None
    vae: str | None = None
    loras: tuple[str, ...] = ()
    lora_alpha: Annotated[float | None, Range(above=0)] = None
    prefer: Literal["generator_ema", "generator"] = "generator_ema"
    quantized: Literal["keep", "expand"] = "keep"
    raw_latents: bool | None = None
    vae_tile: Annotated[int | None, Range(low=16)] = None
    matmul: Literal["dequantize", "native"] = "dequantize"
    sizes: tuple[Size, ...]
    fps: Annotated[float, Range(above=0)] = 16.0
    chunk_latent_frames: Positive = 3
    longest_s: Duration | None = None
    licence: str = ""
    cpu_frames_per_s: Annotated[float | None, Range(above=0)] = None

    def __post_init__(self) -> None:
        more = []
        if not self.path.strip():
            more.append(Problem(key="path", reason="must name a folder, got nothing"))
        for text in self.loras:
            try:
                parse_lora(text)
            except UsageError as error:
                more.append(Problem(key="loras", reason=error.message))
        if not self.sizes:
            more.append(Problem(key="sizes", reason="must list at least one size, got none"))
        check(self, *more)


@dataclass(frozen=True, kw_only=True, slots=True)
class ScheduleConfig:
    """How a chunk is denoised.

    Attributes:
        timesteps: Falling timesteps in (0, 1000], the first 1000; each is one forward pass.
        first_timesteps: Those of the first chunk that is made, and of the first of a fresh shot;
            with none, `timesteps`.
        shift: Shift of the flow-matching schedule that `warp` applies.
        warp: Whether `timesteps` index the shifted schedule instead of being taken as they stand.
        renoise: Noise between steps: drawn afresh, or the noise that the prediction implies.
        guidance: Scale of classifier-free guidance. 1 is none, which distilled models need; above
            it each step runs the model twice.
    """

    timesteps: tuple[float, ...] = (1000.0, 750.0, 500.0, 250.0)
    first_timesteps: tuple[float, ...] = ()
    shift: Annotated[float, Range(above=0)] = 5.0
    warp: bool = True
    renoise: Literal["fresh", "predicted"] = "fresh"
    guidance: Annotated[float, Range(low=1, high=20)] = 1.0

    def __post_init__(self) -> None:
        problems = []
        lists = {"timesteps": self.timesteps, "first_timesteps": self.first_timesteps or (1000.0,)}
        for key, steps in lists.items():
            falling = all(later < earlier for earlier, later in zip(steps, steps[1:], strict=False))
            if not (steps and steps[0] == 1000 and steps[-1] > 0 and falling):
                listed = ", ".join(f"{step:g}" for step in steps)
                reason = f"must start at 1000 and fall, staying above 0, got [{listed}]"
                problems.append(Problem(key=key, reason=reason))
        check(self, *problems)

    @property
    def first_steps(self) -> int:
        """Forward passes of a chunk that opens a scene, guidance not counted."""
        return len(self.first_timesteps or self.timesteps)


MemoryConfig = (
    FullMemory | WindowMemory | SlowFastMemory | RecencyMemory | RelaxMemory | CompressedMemory
)


@dataclass(frozen=True, kw_only=True, slots=True)
class EncodeConfig:
    """How the video is encoded.

    Attributes:
        quality: How good the encoded video is, better is larger: draft, good, best, or the constant
            rate factor (CRF) of H.264, H.265, AV1 or VP9, where less is better.
        format: The kind of file, which names the video's ending; auto is that of the output's
            name, or mp4. png is a folder of that name with a picture a frame.
        codec: How frames are coded; auto is VP9 in webm, H.264 in mp4, mkv and mov.
        bits: Bits of a sample in the file, 8, 10, or 16 for PNG, which the decoder's numbers are
            rounded to. Without it, 10 for ProRes, else 8.
        interpolate: Frames per second of the file, more than are rendered: ffmpeg's minterpolate
            works out the frames between. Without it, every frame is rendered.
    """

    quality: Annotated[
        str,
        Pattern(
            pattern="draft|good|best|[0-9]{1,2}",
            words="draft, good, best or a constant rate factor, a whole number",
            names=("draft", "good", "best"),
        ),
    ] = "good"
    format: Literal["auto", "mp4", "mkv", "webm", "mov", "png", "gif"] = "auto"
    codec: Literal["auto", "h264", "h265", "av1", "vp9", "prores", "ffv1", "png", "gif"] = "auto"
    bits: Annotated[int | None, Range(low=8, high=16)] = None
    interpolate: Annotated[float | None, Range(low=1, high=240)] = None

    def __post_init__(self) -> None:
        check(self)

    @property
    def ending(self) -> str | None:
        """The ending that the format asks for, or None for any."""
        return None if self.format == "auto" else f".{self.format}"

    @property
    def codec_key(self) -> str | None:
        """The codec's name in the table of formats, or None for the format's first."""
        return None if self.codec == "auto" else self.codec


@dataclass(frozen=True, kw_only=True, slots=True)
class SnapshotConfig:
    """What is kept of a render to go on with it; nothing here changes a frame.

    Attributes:
        mode: Latents and, now and then, the memory (full); latents alone, from which the memory is
            worked out again (latents); or nothing, so that the render cannot be resumed (off).
        disk_budget: Bytes of disk for snapshots of the memory; the last two stay in any case.
        clean: Whether the run folder is removed once the video is finished.
    """

    mode: Literal["full", "latents", "off"] = "full"
    disk_budget: ByteCount = 2_000_000_000
    clean: bool = False

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True, kw_only=True, slots=True)
class PlacementConfig:
    """Where weights wait; nothing here changes a frame.

    Attributes:
        offload: What waits in main memory until it is used: nothing, the weights of the generator's
            blocks, those and the KV cache (all), or as much as `vram` makes necessary (auto).
        vram: Bytes of GPU memory that may be used, or None for what is free.
        parallel: Processes, each on a GPU of its own, that render one film together: tokens of a
            chunk and attention heads, with their part of the KV cache, are shared out among them.
    """

    offload: Literal["auto", "none", "blocks", "all"] = "auto"
    vram: ByteCount | None = None
    parallel: Annotated[int, Range(low=1, high=1024)] = 1

    def __post_init__(self) -> None:
        check(self)


@dataclass(frozen=True, kw_only=True, slots=True)
class RenderConfig:
    """One render, complete.

    Attributes:
        preset: The preset that the values started from.
        prompt: What the video shows; empty only where no video is made.
        shots: What it shows one after another, instead of one prompt and duration: each a text such
            as `8s: PROMPT` or `6s cut: PROMPT`, or a mapping of duration, prompt and transition.
        transition: What becomes of the memory where a shot begins that does not say so itself: only
            the prompt changes (continue), the newest frames are committed again under the new
            prompt (recache), sink and newest frames stay (flush), likewise, and the shot begins far
            away in time (cut), or nothing stays (fresh).
        order: In which order the chunks of a film are made: as they play (forward), or from its end
            towards a first picture (inverted), as in FramePack, for models that were trained so.
        output: The video file, or None for a name made from prompt and seed.
        duration_s: Playing time in seconds.
        seed: Fixes all noise, or None for one chosen at random.
        size: Width and height in pixels, or None for the model's first size.
        fps: Playback rate, or None for the model's own.
        rng: Noise keyed by (seed, chunk, step), or drawn in the reference repositories' order.
        device: `auto`, `cpu`, `cuda` or `cuda:N`.
        dtype: Number type of the generator.
        threads: CPU threads, or None for a number that suits the machine.
        backend: What computes attention and the other ops.
        compile: Whether torch.compile fuses what lies between the ops; takes a minute to begin.
        cuda_graph: Whether the passes of a chunk are one CUDA graph where they can be.
        begin: What the video begins and ends with.
        audio: Its sound.
        model: The model.
        schedule: How a chunk is denoised.
        memory: What the generator keeps of earlier chunks.
        encode: How the video is encoded.
        snapshot: What is kept of the render to go on with it.
        placement: Where weights wait.
        preview: Whether the run folder has a film that grows, preview.mp4, and its newest frame,
            preview.jpg, while the video is rendered.
        contact_sheet: Whether a finished video has a contact sheet beside it, NAME.sheet.jpg.
    """

    preset: str = "mini"
    prompt: str = ""
    shots: Shots = ()
    transition: Transition = "continue"
    order: Order = "forward"
    output: Path | None = None
    duration_s: Duration = 10.0
    seed: Seed = None
    size: Size | None = None
    fps: Rate = None
    rng: Literal["keyed", "reference"] = "keyed"
    device: Annotated[
        str, Pattern(pattern=r"auto|cpu|cuda(:[0-9]+)?", words="auto, cpu, cuda or cuda:N")
    ] = "auto"
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    threads: Annotated[int | None, Range(low=1, high=1024)] = None
    backend: Literal["auto", "torch", "triton", "reference"] = "auto"
    compile: bool = False
    cuda_graph: bool = True
    begin: BeginConfig = field(default_factory=BeginConfig)
    audio: AudioConfig = field(default_factory=AudioConfig)
    model: ModelConfig
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    memory: MemoryConfig = field(default_factory=FullMemory)
    encode: EncodeConfig = field(default_factory=EncodeConfig)
    snapshot: SnapshotConfig = field(default_factory=SnapshotConfig)
    placement: PlacementConfig = field(default_factory=PlacementConfig)
    preview: bool = False
    contact_sheet: bool = True

    def __post_init__(self) -> None:
        more = []
        if self.shots:
            object.__setattr__(self, "prompt", told(self.shots))
            object.__setattr__(self, "duration_s", total_s(self.shots))
        for number, shot in enumerate(self.shots[1:], start=2):
            begins = shot.transition or self.transition
            if why := self.memory.refuses(begins):
                reason = f"shot {number} cannot begin with {begins}: {why}"
                more.append(Problem(key="shots", reason=reason))
        if self.size is not None and self.size not in self.model.sizes:
            known = ", ".join(size_text(size) for size in self.model.sizes)
            reason = f"this model was not trained for {size_text(self.size)}; it knows {known}"
            more.append(Problem(key="size", reason=reason))
        ending = self.encode.ending
        if self.output and ending and self.output.suffix.lower() != ending:
            reason = f"is {self.encode.format}, but the output is {self.output.name}"
            more.append(Problem(key="encode.format", reason=reason))
        if self.placement.parallel > 1 and ":" in self.device:
            reason = f"{self.device} is one GPU, and {self.placement.parallel} processes need more"
            more.append(Problem(key="device", reason=reason))
        more += self._order_problems()
        chunk = self.model.chunk_latent_frames
        more += self.memory.problems(
            chunk=chunk, guidance=self.schedule.guidance, snapshot=self.snapshot.mode
        )
        check(self, *more, key_of=key_of)

    def _order_problems(self) -> Iterator[Problem]:
        """What does not go together with the order in which chunks are made."""
        if self.memory.order != self.order:
            reason = f"is {self.order}, and the positions of memory {self.memory.policy}"
            reason += f" (memory.layout) are for order {self.memory.order}"
            yield Problem(key="order", reason=reason)
        if self.order == "forward":
            if self.begin.last_image is not None:
                able = ", ".join(presets_of_order("inverted")) or "none is here"
                reason = f"preset {self.preset} makes films from their start and cannot be told how"
                reason += f" they end; a last picture is for presets of order inverted: {able}"
                yield Problem(key="begin.last_image", reason=reason)
            return
        if self.begin.video is not None:
            reason = "is a past to go on from, and order inverted makes a film from its end towards"
            yield Problem(key="begin.video", reason=f"{reason} a first picture (begin.image)")
        if self.shots:
            reason = "cannot be with order inverted, which knows one prompt (prompt, duration)"
            yield Problem(key="shots", reason=reason)
        if self.rng != "keyed":
            reason = "draws noise as films are made from their start; order inverted needs keyed"
            yield Problem(key="rng", reason=reason)

    @property
    def film(self) -> tuple[Shot, ...]:
        """The shots; a film of one prompt is one shot."""
        return self.shots or (Shot(prompt=self.prompt, duration_s=self.duration_s),)

    @property
    def frame_size(self) -> tuple[int, int]:
        """Width and height that will be rendered, in pixels."""
        return self.size or self.model.sizes[0]

    @property
    def playback_fps(self) -> float:
        """Frames per second that the video will play at."""
        return self.fps or self.model.fps


def to_mapping(config: RenderConfig) -> dict[str, object]:
    """Return `config` as plain JSON values under the keys that a person writes."""
    plain: dict[str, object] = json.loads(json.dumps(_named(asdict(config)), default=str))
    plain["shots"] = [str(shot) for shot in config.shots]
    return plain


def _named(values: dict[str, object]) -> dict[str, object]:
    """Values of fields under the keys that a person writes."""
    return {
        key_of(name): _named(value) if isinstance(value, dict) else value
        for name, value in values.items()
    }


def digest(config: RenderConfig) -> str:
    """Return the SHA-256 of what fixes the video in `config`, as hexadecimal digits."""
    mapping = {k: value for k, value in to_mapping(config).items() if k not in CHANGES_NO_FRAME}
    canonical = json.dumps(mapping, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()

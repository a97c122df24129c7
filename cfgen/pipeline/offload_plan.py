"""How much memory a render takes, and what must wait in main memory so that a GPU suffices.

Arithmetic only: nothing is loaded. Bytes throughout.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from cfgen.errors import BudgetError

Offload = Literal["none", "blocks", "all"]
"""What waits in main memory until it is used: nothing; the weights of the generator's blocks; and
the KV cache besides, which is all that is large."""

LEVELS: tuple[Offload, ...] = get_args(Offload)

PROGRAM = 420_000_000
"""Python, torch and the libraries that a render imports, before any weight is read (resident
memory; torch 2.13, CPU build, `python tests/bench/full_size.py render`)."""

CUDA_CONTEXT = 600_000_000
"""What a process takes on a GPU before anything is put there; an estimate."""

GPU_DECODE = 0.5
"""What decoding takes on a GPU, of what it takes on a CPU, whose convolutions lay their inputs out
anew; an estimate."""

MARGIN = 1.05
"""What the GPU's allocator takes beyond what is asked of it; an estimate."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MemoryEstimate:
    """What each part of a render takes.

    Attributes:
        blocks: Weights inside the generator's blocks, as they are held.
        largest: The largest weight among them: one at a time is brought to a GPU.
        rest: The generator's other weights.
        adapters: LoRAs that are not merged.
        kv: The KV cache.
        context: Its keys rotated and its values, where a backend needs them laid out so.
        layers: Layers, each of which has its own part of the cache.
        conditioning: The prompt as all layers read it.
        forward: The most that a pass of the generator takes besides.
        vae: The autoencoder's weights.
        decode: The most that decoding takes besides.
        text: The text encoder's weights; gone before the generator is loaded.
        encode: The most that encoding a prompt takes besides.
    """

    blocks: int
    largest: int
    rest: int
    kv: int
    context: int
    layers: int
    conditioning: int
    forward: int
    vae: int
    decode: int
    text: int
    encode: int
    adapters: int = 0

    @property
    def ram_on_cpu(self) -> int:
        """Most resident memory of a render on a CPU."""
        weights = self.blocks + self.rest + self.adapters + self.vae
        held = weights + self.kv + self.conditioning
        made = held + max(self.context + self.forward, self.decode)
        return PROGRAM + max(self.text + self.encode, made)

    def vram(self, offload: Offload) -> int:
        """Most GPU memory of a render with a level of offloading; an estimate.

        Frames are decoded beside the next chunk.
        """
        held = self.rest + self.adapters + self.conditioning
        held += self.blocks if offload == "none" else 2 * self.largest
        held += self.vae
        decode = round(self.decode * GPU_DECODE)
        if offload == "all":
            held += 2 * self.kv // self.layers
            work = self.forward + decode
        else:
            held += self.kv
            work = self.context + self.forward + decode
        return CUDA_CONTEXT + round(MARGIN * (held + work))

    def ram_beside_gpu(self, offload: Offload) -> int:
        """Most resident memory of a render on a GPU; an estimate."""
        waits = {
            "none": 0,
            "blocks": self.blocks,
            "all": self.blocks + self.kv,
        }[offload]
        return 2 * PROGRAM + round(MARGIN * max(waits, self.text))


@dataclass(frozen=True, slots=True)
class Placement:
    """What was chosen, and why in a sentence."""

    offload: Offload
    why: str


def choose(sizes: MemoryEstimate, *, asked: str, budget: int) -> Placement:
    """The least offloading with which a render fits a GPU.

    Args:
        sizes: What it takes.
        asked: A level, or `auto`.
        budget: Bytes of GPU memory that may be used.

    Raises:
        BudgetError: Nothing fits, or not what was asked for.
    """
    levels = [level for level in LEVELS if asked in ("auto", level)]
    for level in levels:
        if sizes.vram(level) <= budget:
            return Placement(level, _why(sizes, level, asked, budget))
    needs = ", ".join(f"{level} {_words(sizes.vram(level))}" for level in levels)
    hint = "make the clip's size or the memory's smaller, or take a smaller quantization"
    if asked != "auto" and sizes.vram("all") <= budget:
        hint = "leave --offload out, or use --offload all"
    raise BudgetError(
        f"this render does not fit in {_words(budget)} of GPU memory; with --offload it takes "
        f"{needs}",
        hint,
    )


def _why(sizes: MemoryEstimate, level: Offload, asked: str, budget: int) -> str:
    kept = {
        "none": "everything on the GPU",
        "blocks": "the blocks' weights wait in main memory",
        "all": "the blocks' weights and the KV cache wait in main memory",
    }[level]
    takes = f"about {_words(sizes.vram(level))} of {_words(budget)}"
    if asked == "auto" and level != "none":
        before = LEVELS[LEVELS.index(level) - 1]
        return f"{kept}: {takes}; --offload {before} would take {_words(sizes.vram(before))}"
    return f"{kept}: {takes}"


def table(sizes: MemoryEstimate) -> Mapping[str, int]:
    """What each part takes, by its name, for people and programs."""
    return {
        "generator": sizes.blocks + sizes.rest,
        "loras": sizes.adapters,
        "kv_cache": sizes.kv,
        "prompt": sizes.conditioning,
        "context": sizes.context,
        "one_pass": sizes.forward,
        "autoencoder": sizes.vae,
        "decoding": sizes.decode,
        "text_encoder": sizes.text + sizes.encode,
    }


def _words(nbytes: int) -> str:
    return f"{nbytes / 1e9:.1f} GB"

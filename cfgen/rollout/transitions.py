"""What a transition does before the first chunk of a shot."""

from __future__ import annotations

from cfgen.memory.protocols import Memory, V
from cfgen.memory.transitions import CUT, FLUSHED
from cfgen.model.generator import Conditioning, Generator
from cfgen.rollout.loop import recommit


def enter(
    generator: Generator,
    memory: Memory[V],
    transition: str,
    conditioning: Conditioning,
    *,
    step: int = 0,
) -> None:
    """Do to a memory, between two chunks, what a shot begins with.

    Nothing but what was committed and its clean latents decides, so a chunk that is committed again
    finds the memory that it was made with.

    Args:
        generator: the causal model.
        memory: what was committed so far.
        transition: one of `memory.transitions`.
        conditioning: what its prompt says.
        step: number of a commit pass, the denoising passes of a chunk counted.
    """
    match transition:
        case "continue":
            return
        case "fresh":
            memory.clear()
        case "flush":
            memory.forget(FLUSHED)
        case "cut":
            memory.forget(FLUSHED)
            memory.jump(CUT)
        case "recache":
            latents = memory.rewind()
            if latents is not None:
                recommit(generator, memory, latents, conditioning, step=step)
        case _:
            raise ValueError(f"{transition!r} is no transition")

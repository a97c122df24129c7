"""Tiny trainings in one process or in one of two: all cases into a folder."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from cfgen.memory.window import WindowMemory
from cfgen.model.generator import Generator, WanConfig
from cfgen.model.text_encoder import TextEncoder
from cfgen.train.context_forcing.error_bank import ErrorSettings
from cfgen.train.context_forcing.lora import LoraSettings
from cfgen.train.context_forcing.student_memory import own_memories
from cfgen.train.context_forcing.teacher_films import ClipFilms
from cfgen.train.context_forcing.teacher_stage import (
    TeacherParts,
    TeacherSettings,
    TeacherStage,
)
from cfgen.train.data.clips import Clips
from cfgen.train.export import text_config
from cfgen.train.loop import train
from cfgen.train.processes import process
from cfgen.train.stage import LoopSettings, Stage
from cfgen.train.tokenizer_stage import train_tokenizer
from cfgen.train.training_memory import MemorySettings
from tests.train.context_forcing.test_student_stage import stage_of

LOOP = LoopSettings(steps=3, log_every=1, precision="no", ema=0.5)
CASES = (
    *("teacher", "teacher lora", "student"),
    *("teacher shared", "teacher lora shared", "student shared"),
)
WITHOUT_BANK = ErrorSettings(clean_chance=1.0)
OWN_BANKS = ErrorSettings(warmup=1, clean_chance=0.0)


def teacher(folder: Path, micro_batches: int, rank: int, errors: ErrorSettings) -> Stage:
    torch.manual_seed(0)
    clips = [folder / f"{number}.safetensors" for number in range(4)]
    for clip in clips:
        save_file({"latents": torch.randn(9, 4, 6, 10)}, clip)
    tokenizer = train_tokenizer(folder, captions=100)
    torch.manual_seed(1)
    sizes = {"dim": 24, "ffn_dim": 32, "num_heads": 2, "num_layers": 2, "text_dim": 16}
    generator = Generator(WanConfig(in_dim=4, out_dim=4, text_len=64, **sizes))
    config = text_config(tokenizer.get_vocab_size(), width=16, layers=1, ffn=16)
    encoder = TextEncoder(config, tokenizer, text_len=64)
    films = ClipFilms(Clips(tuple(clips), ("a cat",) * 4), 1)
    return TeacherStage(
        TeacherSettings(lr=1e-3, targets=3, micro_batches=micro_batches),
        MemorySettings(slow=4, window_shares=(0.0, 0.0), full_share=0.0),
        errors,
        LoraSettings(rank=rank, alpha=float(rank)),
        TeacherParts(generator, encoder, films, _unwritten),
    )


def student(micro_batches: int) -> Stage:
    """Nothing is drawn that processes have in common: one exit, one length, one memory."""
    stage = stage_of(timesteps=(1000.0,), chunks=(4, 4), grow=0, micro_batches=micro_batches)
    memories = own_memories(WindowMemory(size=9, sink=3))
    stage._parts = dataclasses.replace(stage._parts, memories=memories)
    return stage


def trained(folder: Path, case: str, *, micro_batches: int = 1, steps: int = 3) -> None:
    """Train, and write all weights and the average as this process has them."""
    torch.set_num_threads(1)  # with more, sums are taken in another order
    own = folder / f"process {process()[0]}"
    own.mkdir(parents=True, exist_ok=True)
    if "student" in case:
        stage = student(micro_batches)
    else:
        stage = teacher(own, micro_batches, 2 if "lora" in case else 0, WITHOUT_BANK)
    loop = dataclasses.replace(LOOP, steps=steps, share_optimizers="shared" in case)
    for _ in train(stage, folder, loop, minutes=2):
        pass
    weights = {name: p.detach() for name, p in stage.modules.named_parameters()}
    save_file({name: w.contiguous() for name, w in weights.items()}, own / "all.safetensors")


def cut(folder: Path, *, shared: bool) -> None:
    """Train with an error bank of this process's own, whole and in two parts, and keep both."""
    torch.set_num_threads(1)
    own = folder / f"process {process()[0]}"
    own.mkdir(parents=True)

    def part(name: str, *, until: int) -> Stage:
        stage = teacher(own, 1, 0, OWN_BANKS)
        saving = dataclasses.replace(LOOP, steps=4, save_minutes=0.0, share_optimizers=shared)
        for progress in train(stage, folder / name, saving, minutes=2):
            if progress.step == until:  # its step is not saved yet, and is made again
                break
        return stage

    part("parts", until=3)
    for name in ("whole", "parts"):
        stage = part(name, until=4 + 1)
        kept = {f"weights.{n}": p.detach() for n, p in stage.modules.named_parameters()}
        kept |= {f"bank.{n}": t for n, t in stage.extra_state().items()}
        save_file({n: t.contiguous() for n, t in kept.items()}, own / f"{name}.safetensors")


def _unwritten(_weights: Mapping[str, Tensor]) -> None:
    pass


def main(folder: Path) -> None:
    for case in CASES:
        trained(folder / case, case)
    cut(folder / "cut", shared=False)
    cut(folder / "cut shared", shared=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))

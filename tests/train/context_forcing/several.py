"""A process that trains a tiny teacher: `several.py FOLDER MICRO_BATCHES RANK SHARD`."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from cfgen.model.generator import Generator, WanConfig
from cfgen.model.text_encoder import TextEncoder
from cfgen.train.context_forcing.error_bank import ErrorSettings
from cfgen.train.context_forcing.lora import LoraSettings
from cfgen.train.context_forcing.teacher_films import ClipFilms
from cfgen.train.context_forcing.teacher_stage import (
    TeacherParts,
    TeacherSettings,
    TeacherStage,
)
from cfgen.train.data.clips import Clips
from cfgen.train.export import text_config
from cfgen.train.loop import train
from cfgen.train.stage import LoopSettings
from cfgen.train.tokenizer_stage import train_tokenizer
from cfgen.train.training_memory import MemorySettings


def main(folder: Path, micro_batches: int, rank: int, *, shard: bool) -> None:
    torch.manual_seed(0)
    clips = []
    for number in range(4):
        clips.append(folder / f"{number}.safetensors")
        if not clips[-1].exists():
            save_file({"latents": torch.randn(9, 4, 6, 10)}, clips[-1])
    tokenizer = train_tokenizer(folder / "model", captions=100)
    torch.manual_seed(1)
    sizes = {"dim": 24, "ffn_dim": 32, "num_heads": 2, "num_layers": 2, "text_dim": 16}
    generator = Generator(WanConfig(in_dim=4, out_dim=4, text_len=64, **sizes))
    config = text_config(tokenizer.get_vocab_size(), width=16, layers=1, ffn=16)
    parts = TeacherParts(
        generator,
        TextEncoder(config, tokenizer, text_len=64),
        ClipFilms(Clips(tuple(clips), ("a cat",) * 4), 1),
        lambda weights: save_file(
            {name: w.detach().contiguous() for name, w in weights.items()},
            folder / "exported.safetensors",
        ),
    )
    loop = LoopSettings(steps=3, log_every=1, precision="no", ema=0.5, shard=shard)
    stage = TeacherStage(
        TeacherSettings(lr=1e-3, targets=3, micro_batches=micro_batches),
        MemorySettings(slow=4, window_shares=(0.0, 0.0), full_share=0.0),
        ErrorSettings(clean_chance=1.0),
        LoraSettings(rank=rank),
        parts,
    )
    list(train(stage, folder, loop, minutes=5))


if __name__ == "__main__":
    path, micro_batches, rank, shard = sys.argv[1:]
    main(Path(path), int(micro_batches), int(rank), shard=shard == "shard")

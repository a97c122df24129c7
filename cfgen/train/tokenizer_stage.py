"""Stage `tokenizer`: a small BPE tokenizer learned from captions, and the words of the model."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

from cfgen.files.writing import write_file
from cfgen.train.film_world.captions import (
    CAMERA_WORDS,
    GROUND_WORDS,
    MOTION_WORDS,
    SKY_WORDS,
    caption,
    vocabulary,
)
from cfgen.train.film_world.sampling import sample_film
from cfgen.train.film_world.subjects import SHAPES
from cfgen.train.film_world.world import COLOURS

SPECIAL = ("<pad>", "</s>", "<unk>")


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenizerSettings:
    """Values of the stage: how many captions it reads, and the size of its vocabulary."""

    captions: int = 20000
    vocab_size: int = 1024


def train_tokenizer(model_dir: Path, *, captions: int = 20000, vocab_size: int = 1024) -> Tokenizer:
    """Train on captions of random films and write `tokenizer/tokenizer.json` and `mini.json`.

    Returns:
        the tokenizer. The same arguments always give the same file.
    """
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Whitespace(), pre_tokenizers.Punctuation()]
    )
    alphabet = [chr(c) for c in range(33, 127)]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL),
        initial_alphabet=alphabet,
        show_progress=False,
    )
    tokenizer.train_from_iterator(
        (
            caption(film, shot, i)
            for i in range(captions)
            for film in (sample_film(i, chunks=8),)
            for shot in (i % len(film.shots),)
        ),
        trainer,
    )
    (model_dir / "tokenizer").mkdir(parents=True, exist_ok=True)
    write_file(
        model_dir / "tokenizer" / "tokenizer.json",
        tokenizer.to_str(pretty=True).encode(),
        shared=True,
    )
    films = [sample_film(i, chunks=4, held_out=True) for i in range(8)]
    examples = [caption(film, 0, i, complete=True) for i, film in enumerate(films)]
    facts = {"words": vocabulary(), "knows": _knows(), "examples": examples}
    write_file(model_dir / "mini.json", f"{json.dumps(facts, indent=1)}\n".encode(), shared=True)
    return tokenizer


def _knows() -> dict[str, str]:
    """What can be asked for, in short rows."""
    motions, places, times, cameras = (
        ", ".join(words[0] for words in table.values())
        for table in (MOTION_WORDS, GROUND_WORDS, SKY_WORDS, CAMERA_WORDS)
    )
    return {
        "things": f"one to three of {', '.join(SHAPES)}; {', '.join(COLOURS)}",
        "motions": motions,
        "places": places,
        "times": times,
        "camera": cameras.replace("the camera ", ""),
    }

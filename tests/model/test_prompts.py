"""Embedded prompts are kept, so that the encoder is loaded only for new ones."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from cfgen.model.prompts import embeddings


class Encoder:
    """Counts how often it is loaded and what it is asked for."""

    def __init__(self) -> None:
        self.asked: list[list[str]] = []

    def load(self):
        def encode(prompts: list[str]) -> Tensor:
            self.asked.append(prompts)
            return torch.stack([torch.full((4, 3), float(len(p))) for p in prompts])

        return encode


def test_only_new_prompts_are_encoded(tmp_path: Path) -> None:
    encoder, folder = Encoder(), tmp_path / "cache"
    first = embeddings(["a", "bb"], encoder="x", load=encoder.load, folder=folder)
    again = embeddings(["bb", "ccc", "a"], encoder="x", load=encoder.load, folder=folder)
    assert encoder.asked == [["a"], ["bb"], ["ccc"]]
    assert again.keys() == {"a", "bb", "ccc"}
    assert torch.equal(again["bb"], first["bb"])
    assert again["ccc"].shape == (1, 4, 3)
    assert float(again["ccc"].mean()) == 3
    embeddings(["a"], encoder="x", load=encoder.load, folder=folder)
    assert len(encoder.asked) == 3


def test_another_encoder_has_other_embeddings(tmp_path: Path) -> None:
    encoder = Encoder()
    for name in ("x", "y", "x"):
        embeddings(["a"], encoder=name, load=encoder.load, folder=tmp_path)
    assert encoder.asked == [["a"], ["a"]]


def test_a_damaged_cache_is_written_anew(tmp_path: Path) -> None:
    encoder = Encoder()
    embeddings(["a"], encoder="x", load=encoder.load, folder=tmp_path)
    (file,) = tmp_path.iterdir()
    file.write_bytes(b"damaged")
    for _ in range(2):
        found = embeddings(["a"], encoder="x", load=encoder.load, folder=tmp_path)
        assert float(found["a"].mean()) == 1
    assert len(encoder.asked) == 2
    assert list(tmp_path.iterdir()) == [file]


def test_a_cache_that_cannot_be_written_does_no_harm(tmp_path: Path) -> None:
    encoder = Encoder()
    (tmp_path / "file").write_text("in the way")
    folder = tmp_path / "file" / "cache"
    found = embeddings(["a"], encoder="x", load=encoder.load, folder=folder)
    assert float(found["a"].mean()) == 1

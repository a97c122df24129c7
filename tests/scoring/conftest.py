"""Small lossless films, with or without what stands beside them."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

import imageio_ffmpeg
import numpy as np
import pytest
from numpy.typing import NDArray

from cfgen.files.writing import sha256_of

Frames = Sequence[NDArray[np.uint8]]
Write = Callable[..., Path]

WORLD: NDArray[np.uint8] = np.random.default_rng(29).integers(40, 200, (32, 400, 3), np.uint8)


def pan(frames: int, first: int = 0) -> list[NDArray[np.uint8]]:
    """A view of 48 by 32 that goes over noise, a pixel a frame."""
    return [WORLD[:, first + number : first + number + 48] for number in range(frames)]


def write_film(
    path: Path,
    frames: Frames,
    *options: str,
    rate: str = "8",
    prompt: str | None = None,
    seed: int = 1,
) -> Path:
    """A film, lossless unless options say otherwise, with a sidecar if it has a prompt."""
    height, width = frames[0].shape[:2]
    path.parent.mkdir(parents=True, exist_ok=True)
    raw = ["-f", "rawvideo", "-pixel_format", "rgb24", "-video_size", f"{width}x{height}"]
    codec = options or ("-c:v", "ffv1", "-pix_fmt", "bgr0")
    argv = [imageio_ffmpeg.get_ffmpeg_exe(), "-y", "-loglevel", "error", *raw, "-framerate", rate]
    argv += ["-i", "pipe:0", *codec, str(path)]
    content = b"".join(frame.tobytes() for frame in frames)
    subprocess.run(argv, input=content, check=True, timeout=60)
    if prompt is not None:
        facts = {"metadata": {"prompt": prompt, "seed": str(seed)}}
        facts |= {"facts": {"sha256": sha256_of(path), "quality": "good"}}
        path.with_name(f"{path.name}.json").write_text(json.dumps(facts))
    return path


@pytest.fixture(autouse=True)
def sure_ffmpeg(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CFGEN_FFMPEG", imageio_ffmpeg.get_ffmpeg_exe())


@pytest.fixture(scope="session")
def dinov2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a DINOv2 of random weights, as transformers saves it."""
    import torch
    from transformers import Dinov2Config, Dinov2Model

    folder = tmp_path_factory.mktemp("embedders") / "tiny-dinov2"
    torch.manual_seed(3)
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    Dinov2Model(Dinov2Config(image_size=28, patch_size=14, **sizes)).save_pretrained(folder)
    _preprocessing(folder, shortest=32, crop=28)
    return folder


@pytest.fixture(scope="session")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a CLIP of random weights and a small vocabulary."""
    import torch
    from transformers import CLIPConfig, CLIPModel

    folder = tmp_path_factory.mktemp("embedders") / "tiny-clip"
    torch.manual_seed(5)
    sizes = {"hidden_size": 16, "intermediate_size": 16}
    sizes |= {"num_hidden_layers": 1, "num_attention_heads": 2}
    text = {**sizes, "vocab_size": 12, "max_position_embeddings": 8, "eos_token_id": 11}
    vision = {**sizes, "image_size": 28, "patch_size": 14}
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=6)
    CLIPModel(config).save_pretrained(folder)
    _preprocessing(folder, shortest=28, crop=28)
    words = ["a", "b", "k", "i", "a</w>", "e</w>", "k</w>", "b</w>", "t</w>", "ki"]
    vocabulary = [*words, "<|startoftext|>", "<|endoftext|>"]
    numbers = {word: number for number, word in enumerate(vocabulary)}
    (folder / "vocab.json").write_text(json.dumps(numbers))
    (folder / "merges.txt").write_text("#version: 0.2\nk i\n")
    return folder


def _preprocessing(folder: Path, *, shortest: int, crop: int) -> None:
    facts = {"size": {"shortest_edge": shortest}, "crop_size": {"height": crop, "width": crop}}
    mean, std = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
    facts |= {"image_mean": mean, "image_std": std, "resample": 3}
    (folder / "preprocessor_config.json").write_text(json.dumps(facts))

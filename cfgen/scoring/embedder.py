"""Embeds frames with the weights of a local folder: DINOv2's, or CLIP's with its text."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cfgen.errors import InputRefused
from cfgen.files.reading import read_text
from cfgen.files.writing import sha256_of
from cfgen.metrics.levels import Frame

_CLASSES = {
    "dinov2": "Dinov2Model",
    "dinov2_with_registers": "Dinov2WithRegistersModel",
    "clip": "CLIPModel",
}
"""Classes of transformers by the `model_type` of a folder's config.json."""

_TOKENIZERS = ("tokenizer.json", "vocab.json")

BATCH = 16
"""Frames that are embedded at once."""

_MOST_SIDE = 4096


@dataclass(frozen=True, kw_only=True, slots=True)
class Preprocessing:
    """How a frame becomes what a network takes, as its preprocessor_config.json says.

    Attributes:
        shorter: Pixels that the shorter side is scaled to.
        crop: Pixels on the side of the square that is cut out of the middle.
        mean: Subtracted from each channel of 0 to 1.
        std: Each channel is then divided by it.
        resample: How it is scaled, by Pillow's number.
    """

    shorter: int
    crop: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    resample: int

    @classmethod
    def of(cls, path: Path) -> Preprocessing:
        """Read it.

        Raises:
            InputRefused: It is not there, or not for pictures that are scaled and cropped.
        """
        facts = _json(path)
        try:
            return cls(
                shorter=_side(facts["size"], "shortest_edge"),
                crop=_side(facts["crop_size"], "height"),
                mean=_triple(facts["image_mean"]),
                std=_triple(facts["image_std"]),
                resample=int(facts["resample"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise InputRefused(
                f"{path} does not say how pictures are scaled, cropped and normalised: {error}"
            ) from None

    def pixels(self, frame: Frame) -> NDArray[np.float32]:
        """A frame, uint8 [height, width, 3], as float32 [3, crop, crop]."""
        from PIL import Image

        height, width = frame.shape[:2]
        least = min(height, width)
        size = (self.shorter * width // least, self.shorter * height // least)
        resample = Image.Resampling(self.resample)
        scaled = Image.fromarray(frame).resize(size, resample=resample)
        left, top = (size[0] - self.crop) // 2, (size[1] - self.crop) // 2
        cropped = scaled.crop((left, top, left + self.crop, top + self.crop))
        levels = np.asarray(cropped, dtype=np.float32) / 255
        normal = (levels - np.array(self.mean, np.float32)) / np.array(self.std, np.float32)
        return np.ascontiguousarray(normal.transpose(2, 0, 1), dtype=np.float32)


class Embedder:
    """A network that embeds frames.

    Attributes:
        folder: Where its weights lie.
        kind: The `model_type` of its configuration.
        sha256: Digest of its weights.
    """

    def __init__(self, folder: Path) -> None:
        """Load a network; nothing is downloaded.

        Raises:
            InputRefused: The folder has no DINOv2 or CLIP that can be loaded.
        """
        self.folder = folder
        config = folder / "config.json"
        self.kind = str(_json(config).get("model_type"))
        if self.kind not in _CLASSES:
            raise InputRefused(
                f"{config} is of {self.kind!r}, frames are embedded with {', '.join(_CLASSES)}"
            )
        weights = folder / "model.safetensors"
        if not weights.is_file():
            raise InputRefused(f"{folder} holds no {weights.name}")
        self._preprocessing = Preprocessing.of(folder / "preprocessor_config.json")
        self.sha256 = sha256_of(weights)
        self._network = self._load()

    def frames(self, frames: Iterable[Frame]) -> Iterator[NDArray[np.float32]]:
        """Yield the embeddings of frames, float32 [up to 16, width], in order."""
        waiting: list[NDArray[np.float32]] = []
        for frame in frames:
            waiting.append(self._preprocessing.pixels(frame))
            if len(waiting) == BATCH:
                yield self._embed(waiting)
                waiting = []
        if waiting:
            yield self._embed(waiting)

    def text(self, words: str) -> NDArray[np.float32] | None:
        """The embedding of a text, float32 [width].

        Returns:
            None where the network takes none, or the folder has no tokenizer.

        Raises:
            InputRefused: The folder's tokenizer cannot be loaded.
        """
        import torch
        from transformers import CLIPTokenizer

        if self.kind != "clip" or not any((self.folder / name).is_file() for name in _TOKENIZERS):
            return None
        try:
            tokenizer = CLIPTokenizer.from_pretrained(self.folder, local_files_only=True)
        except Exception as error:
            if not (type(error) is Exception or isinstance(error, OSError | ValueError)):
                raise  # the library of tokenizers raises plain ones
            raise InputRefused(
                f"the tokenizer of {self.folder} cannot be loaded: {error}"
            ) from None
        longest = self._network.config.text_config.max_position_embeddings
        tokens = tokenizer(words, return_tensors="pt", truncation=True, max_length=longest)
        with torch.inference_mode():
            found = _plain(self._network.get_text_features(**tokens.to(self._network.device)))
        first: NDArray[np.float32] = found[0]
        return first

    def _load(self) -> Any:
        import torch
        import transformers
        from safetensors import SafetensorError

        device = "cuda" if torch.cuda.is_available() else "cpu"
        try:
            with _silent():
                network, facts = getattr(transformers, _CLASSES[self.kind]).from_pretrained(
                    self.folder,
                    local_files_only=True,
                    use_safetensors=True,
                    dtype=torch.float32,
                    output_loading_info=True,
                )
        except (OSError, ValueError, RuntimeError, KeyError, SafetensorError) as error:
            raise InputRefused(f"{self.folder} cannot be loaded: {error}") from None
        if missing := sorted(facts["missing_keys"]):
            # transformers would go on with random numbers in their place
            raise InputRefused(f"{self.folder} lacks {len(missing)} tensors, such as {missing[0]}")
        return network.eval().to(device)

    def _embed(self, pixels: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
        import torch

        given = torch.from_numpy(np.stack(pixels)).to(self._network.device)
        with torch.inference_mode():
            if self.kind == "clip":
                return _plain(self._network.get_image_features(pixel_values=given))
            return _plain(self._network(pixel_values=given).last_hidden_state[:, 0])


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Keep transformers from drawing progress and warning on stderr while it loads."""
    from transformers.utils import logging

    said: Any = logging  # which tells no types
    verbosity, drawn = said.get_verbosity(), said.is_progress_bar_enabled()
    said.set_verbosity_error()
    said.disable_progress_bar()
    try:
        yield
    finally:
        said.set_verbosity(verbosity)
        if drawn:
            said.enable_progress_bar()


def _plain(found: Any) -> NDArray[np.float32]:
    """A tensor, or what transformers wraps it in, as an array."""
    tensor = getattr(found, "pooler_output", found)
    plain: NDArray[np.float32] = tensor.float().cpu().numpy()
    return plain


def _json(path: Path) -> Mapping[str, Any]:
    try:
        facts = json.loads(read_text(path))
    except (OSError, ValueError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise InputRefused(f"cannot read {path}: {reason}") from None
    if not isinstance(facts, dict):
        raise InputRefused(f"{path} is no mapping")
    return facts


def _side(told: Any, name: str) -> int:
    """Pixels of a side, which stand alone or by name."""
    side = int(told[name] if isinstance(told, dict) else told)
    if not 0 < side <= _MOST_SIDE:
        raise ValueError(f"a side of {side} pixels")
    return side


def _triple(told: Any) -> tuple[float, float, float]:
    red, green, blue = (float(value) for value in told)
    return red, green, blue

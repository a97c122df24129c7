"""Which files of a folder are the parts of a model, by the names that publishers give them.

Names only choose the file; what it holds is judged by its content when it is opened.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cfgen.checkpoint.formats.base import refuse_dcp
from cfgen.errors import CheckpointError
from cfgen.files.reading import WEIGHTS

INDEX = ".safetensors.index.json"

GENERATORS = ("diffusion_pytorch_model.safetensors",)
VAES = ("tae.safetensors", "Wan2.1_VAE.pth", "Wan2.1_VAE.safetensors", "wan_2.1_vae.safetensors")
TEXT_ENCODERS = (
    "models_t5_umt5-xxl-enc-bf16.pth",
    "models_t5_umt5-xxl-enc-bf16.safetensors",
    "umt5_xxl_fp8_e4m3fn_scaled.safetensors",
    "umt5_xxl_fp16.safetensors",
)
TOKENIZERS = ("tokenizer/tokenizer.json", "google/umt5-xxl/tokenizer.json")


@dataclass(frozen=True, slots=True)
class ModelFiles:
    """The parts of a model on disk.

    Attributes:
        generator: A file of weights, or the index of its shards.
        text_encoder: A file, or a folder in Hugging Face's layout.
        vae: A file, or a folder in diffusers' layout.
        tokenizer: A file; None if the text encoder's own files must tell.
    """

    generator: Path
    text_encoder: Path
    vae: Path
    tokenizer: Path | None = None


def find_files(
    place: Path,
    *,
    text_encoder: Path | None = None,
    vae: Path | None = None,
    tokenizer: Path | None = None,
) -> ModelFiles:
    """The parts of a model: those that are named, and the others beside its generator.

    Args:
        place: The generator's file, or the folder of the model.
        text_encoder: Given instead of what lies in the folder.
        vae: Likewise.
        tokenizer: Likewise.

    Raises:
        CheckpointError: A part is not there, or there are several and nothing says which.
    """
    generator = generator_file(place)
    home = place if place.is_dir() else generator.parent
    encoder = text_encoder or _first(home, ("text_encoder", *TEXT_ENCODERS))
    if encoder is None:
        raise _lacking(home, "text encoder", "--text-encoder")
    decoder = vae or _first(home, (*VAES, "vae"))
    if decoder is None:
        raise _lacking(home, "video autoencoder", "--vae")
    if tokenizer is None and text_encoder is None:
        tokenizer = _first(home, TOKENIZERS)
    return ModelFiles(generator, encoder, decoder, tokenizer)


def generator_file(place: Path) -> Path:
    """The file of weights that a path means.

    Raises:
        CheckpointError: A folder holds none, or several and nothing says which.
    """
    if not place.is_dir():
        return place
    refuse_dcp(place)
    for folder in (place, place / "transformer"):
        if found := _first(folder, GENERATORS):
            return found
        indices = sorted(folder.glob(f"*{INDEX}"))
        if len(indices) == 1:
            return indices[0]
    known = {*VAES, *TEXT_ENCODERS}
    others = [p for p in sorted(place.iterdir()) if p.suffix in WEIGHTS and p.name not in known]
    if len(others) == 1:
        return others[0]
    listed = ", ".join(path.name for path in others[:5])
    what = f"several files of weights: {listed}" if others else "no file of weights"
    raise CheckpointError(
        f"{place} holds {what}, and none is named {GENERATORS[0]}",
        "name the generator's file itself",
    )


def _first(folder: Path, names: Sequence[str]) -> Path | None:
    return next((folder / name for name in names if (folder / name).exists()), None)


def _lacking(home: Path, what: str, flag: str) -> CheckpointError:
    return CheckpointError(
        f"no {what} lies in {home}",
        f"name one with {flag} PATH; the presets know where each model's is published",
    )

"""A network that is to be written anew: found in its file, complete, and of a kind that can be."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cfgen.checkpoint.formats.base import Container
from cfgen.checkpoint.formats.open import open_container
from cfgen.checkpoint.identify.digests import digest
from cfgen.checkpoint.identify.preset_guess import CERTAIN, HEADER_KEY, cached_digest, guess
from cfgen.checkpoint.naming import EMA, LIVE, WAN, NamingScheme
from cfgen.checkpoint.networks import vae
from cfgen.checkpoint.networks.fill import MATRICES, compare, config_of, open_generator, shapes_of
from cfgen.checkpoint.networks.geometry import read_geometry
from cfgen.checkpoint.networks.model_files import generator_file
from cfgen.checkpoint.networks.network import Network
from cfgen.checkpoint.networks.text_encoder import open_text_encoder, settings_of
from cfgen.checkpoint.networks.umt5_names import UMT5
from cfgen.errors import CheckpointError
from cfgen.model.generator import Generator, WanConfig

GENERATOR, ENCODER = "Wan generator", "UMT5 encoder"

ENCODER_MATRICES = re.compile(
    r"encoder\.block\.\d+\.layer\.(0\.SelfAttention\.[qkvo]|1\.DenseReluDense\.w[io](_\d)?)\.weight"
)
"""Matrices of an encoder's blocks, in Hugging Face's names."""

KEPT_METADATA = re.compile(r"modelspec\..*|license|cfgen\..*")
"""Keys of a header that say something of the model and nothing of how the file is laid out."""


@dataclass(frozen=True, slots=True)
class Source:
    """What a file holds that is to be written anew.

    Attributes:
        network: its tensors.
        geometry: sizes of a generator; None for a text encoder.
    """

    network: Network
    geometry: WanConfig | None

    @property
    def path(self) -> Path:
        """The file."""
        return self.network.file.path

    @property
    def kind(self) -> str:
        """What it is, in words."""
        return GENERATOR if self.geometry else ENCODER

    def is_matrix(self, name: str) -> bool:
        """Whether a tensor is one of those that are quantized: a matrix of a block."""
        if self.geometry is None:
            return ENCODER_MATRICES.fullmatch(name) is not None
        return name.endswith(".weight") and MATRICES.fullmatch(name) is not None

    @property
    def metadata(self) -> dict[str, str]:
        """What the file's header says of the model, and the preset that it certainly wants.

        Raises:
            CheckpointError: a sidecar beside it cannot be read or names no preset.
        """
        said = self.network.file.metadata
        kept = {k: v for k, v in said.items() if isinstance(v, str) and KEPT_METADATA.fullmatch(k)}
        if self.geometry is None:
            return kept
        found = guess(self.path, metadata=said)
        if found.basis not in CERTAIN:
            files = self.network.file.files
            found = guess(self.path, digests=[cached_digest(p) or digest(p) for p in files])
        certain = found.recipe and found.basis in CERTAIN
        return kept | ({HEADER_KEY: found.recipe} if certain else {})


def open_source(path: Path, *, weights: str | None = None) -> Source:
    """Open the file of a generator or text encoder, which must be one that cfgen can load.

    Args:
        path: a file, the index of shards, or a folder that holds one.
        weights: `generator_ema` or `generator`, which must then be in the file; None takes the
            averaged ones where there are both.

    Raises:
        CheckpointError: it is damaged, incomplete, of an unknown layout, or another network.
    """
    file = open_container(generator_file(path))
    if _holds(file, UMT5) and not _holds(file, WAN):
        encoder = open_text_encoder(file.path)
        settings_of(encoder)
        _check_choice(encoder, weights)
        return Source(encoder, None)
    if _holds(file, vae.LAYOUTS) and not _holds(file, WAN):
        raise CheckpointError(
            f"{file.path} holds a video autoencoder, which is neither quantized nor converted: it "
            "is small, needs its precision, and loads in every layout that it is published in",
            "give a generator or a text encoder",
        )
    network = open_generator(file.path, prefer=weights or EMA)
    _check_choice(network, weights)
    if network.memory is not None:
        raise CheckpointError(
            f"{file.path} holds a second set of weights, which writes the memory (memory_*), and "
            "only one set can be written anew",
            "render with the file as it is; --offload blocks and --kv-cache int8 save memory",
        )
    geometry = read_geometry(network.shapes, config_of(file.path), weights=file.path)
    compare(shapes_of(Generator, geometry), network.shapes, file.path)
    return Source(network, geometry)


def _holds(file: Container, layouts: Sequence[NamingScheme]) -> bool:
    """Whether a name in the file is one that only such networks have."""
    return any(name.endswith(tuple(layout.anchor for layout in layouts)) for name in file.entries)


def _check_choice(network: Network, weights: str | None) -> None:
    """Refuse weights that were asked for by name and are not in the file."""
    prefix = network.naming.prefix
    if weights is None or weights in re.split(r"[./]", prefix):
        return
    raise CheckpointError(
        f"{network.file.path} holds no {weights}: its weights stand under "
        + (repr(prefix) if prefix else "no prefix"),
        "leave --weights out" if len(network.naming.choices) == 1 else f"take {EMA} or {LIVE}",
    )

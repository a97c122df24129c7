"""From files to networks, strictly: every tensor of a file is used and none is made up."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from cfgen.checkpoint import container, keys, quantized
from cfgen.checkpoint.container import digest
from cfgen.checkpoint.geometry import read_geometry
from cfgen.errors import CheckpointError
from cfgen.model.generator import Generator
from cfgen.model.vae import TinyAutoencoder

if TYPE_CHECKING:
    from cfgen.model.text_encoder import TextEncoder

__all__ = ["digest", "load_generator", "load_state", "load_text_encoder", "load_vae"]

GENERATOR_FILE = "diffusion_pytorch_model.safetensors"
CONFIG_FILE = "config.json"
TEXT_ENCODER_FILE = "model.safetensors"

SHARED, TWIN = "shared.weight", "encoder.embed_tokens.weight"
"""Two names of a text encoder's one embedding table; files need to hold the first only."""

MATRICES = re.compile(r"blocks\.\d+\.((self|cross)_attn\.[qkvo]|ffn\.[02])\.(weight|bias)")
"""Linear layers of a generator's blocks; `F.linear` wants the biases in the weights' dtype."""

NAMED = 5
"""Most tensors that one message names."""

CPU = torch.device("cpu")


def load_state(path: Path, *, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """Tensors of a safetensors file under native names.

    Quantized layers are decoded, prefixes that tools put before every name come off, and diffusers'
    names of a Wan transformer become Wan's own. Plain tensors are views of the file: it must not
    change while they live.

    Args:
        path: the file.
        dtype: of decoded layers; plain tensors keep theirs.

    Raises:
        CheckpointError: the file is missing, damaged or of an unknown layout.
    """
    return _load_state(path, lambda _name: dtype)


def load_generator(
    path: Path, *, dtype: torch.dtype = torch.float32, device: torch.device = CPU
) -> Generator:
    """A Wan generator in evaluation mode, its weights frozen.

    Args:
        path: a model folder (`diffusion_pytorch_model.safetensors` and `config.json`), or a weights
            file with `config.json` beside it.
        dtype: of the linear layers inside the blocks, weights and biases; norms, modulations,
            embeddings and head stay in float32 (float64 where `dtype` is float64).
        device: where it goes.

    Raises:
        CheckpointError: a file is missing or damaged, the config contradicts the weights, or the
            tensors are not exactly those of the generator.
    """
    weights = path / GENERATOR_FILE if path.is_dir() else path
    config = weights.with_name(CONFIG_FILE)
    precise = torch.promote_types(dtype, torch.float32)

    def dtype_of(name: str) -> torch.dtype:
        return dtype if MATRICES.fullmatch(name) else precise

    state = _load_state(weights, dtype_of)
    geometry = read_geometry(
        state, container.read_json(config), weights=weights, config_path=config
    )
    with torch.device("meta"):
        generator = Generator(geometry)
    _fill(generator, state, path=weights, dtype_of=dtype_of, device=device)
    return generator


def load_vae(
    path: Path, *, dtype: torch.dtype = torch.float32, device: torch.device = CPU
) -> TinyAutoencoder:
    """A tiny autoencoder of the widths in the file, channels last, in evaluation mode, frozen.

    Raises:
        CheckpointError: the file is missing or damaged, or no such autoencoder.
    """
    state = load_state(path, dtype=dtype)
    try:
        with torch.device("meta"):
            vae = TinyAutoencoder.for_weights(state)
    except (KeyError, IndexError) as error:
        raise CheckpointError(
            f"{path} holds no tiny autoencoder: {error.args[0]} is missing or has too few axes",
            "check the path of the model",
        ) from error
    _fill(vae, state, path=path, dtype_of=lambda _name: dtype, device=device)
    return vae.to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


def load_text_encoder(
    folder: Path,
    tokenizer: Path,
    *,
    text_len: int,
    dtype: torch.dtype = torch.float32,
    device: torch.device = CPU,
) -> TextEncoder:
    """A UMT5 encoder with its tokenizer, in evaluation mode, its weights frozen.

    Args:
        folder: `config.json` and `model.safetensors` as Hugging Face lays them out.
        tokenizer: the tokenizer.json that belongs to it.
        text_len: positions of an embedded prompt.
        dtype: of all weights.
        device: where it goes.

    Raises:
        CheckpointError: a file is missing or damaged, or config, weights and tokenizer do not
            belong together.
    """
    from cfgen.model.text_encoder import TextEncoder, load_tokenizer

    words = load_tokenizer(tokenizer)
    config, weights = folder / CONFIG_FILE, folder / TEXT_ENCODER_FILE
    settings = container.read_json(config)
    try:
        with torch.device("meta"):
            encoder = TextEncoder(settings, words, text_len=text_len)
    except CheckpointError:
        raise
    except Exception as error:  # transformers raises whatever a value leads to
        raise CheckpointError(f"{config} describes no UMT5 encoder: {error}") from error
    rows = encoder.model.shared.num_embeddings
    if words.get_vocab_size() > rows:
        raise CheckpointError(
            f"{tokenizer} has {words.get_vocab_size()} tokens, {config} only {rows}",
            "give the tokenizer that belongs to the encoder",
        )
    state = load_state(weights, dtype=dtype)
    _drop_twin(state, weights)
    _fill(
        encoder.model,
        state,
        path=weights,
        dtype_of=lambda _name: dtype,
        device=device,
        tied={TWIN: SHARED},
    )
    return encoder.eval()


def _load_state(path: Path, dtype_of: Callable[[str], torch.dtype]) -> dict[str, Tensor]:
    """See `load_state`; `dtype_of` is asked with native names."""
    contents = container.read(path)
    prefix = keys.common_prefix(contents.tensors)
    stripped = [name.removeprefix(prefix) for name in contents.tensors]
    diffusers = keys.is_diffusers(stripped)

    def native(name: str) -> str:
        bare = name.removeprefix(prefix)
        return keys.from_diffusers(bare) if diffusers else bare

    tensors: dict[str, Tensor] = {}
    for name, tensor in contents.tensors.items():
        if native(name) in tensors:
            raise CheckpointError(f"{path} holds {native(name)} twice, once as {name}")
        tensors[native(name)] = tensor
    return quantized.decode(tensors, contents.metadata, path, native=native, dtype_of=dtype_of)


def _drop_twin(state: dict[str, Tensor], path: Path) -> None:
    """Take the second name of the embedding table out, if it is there."""
    if SHARED not in state:
        raise CheckpointError(f"{path} holds no UMT5 encoder: {SHARED} is missing")
    twin = state.pop(TWIN, state[SHARED])
    if not torch.equal(twin.to(state[SHARED].dtype), state[SHARED]):
        raise CheckpointError(f"{path}: {TWIN} differs from {SHARED}, which must be the same table")


def _fill(
    module: nn.Module,
    state: dict[str, Tensor],
    *,
    path: Path,
    dtype_of: Callable[[str], torch.dtype],
    device: torch.device,
    tied: Mapping[str, str] | None = None,
) -> None:
    """Put weights into a network made on the meta device.

    Args:
        module: the network.
        state: its weights, taken out one by one.
        path: where they come from, for messages.
        dtype_of: dtype of each, by its name.
        device: where they go.
        tied: names that are not in `state`, and the name whose parameter each shares.

    Raises:
        CheckpointError: a tensor is missing, unknown or of another shape.
    """
    tied = tied or {}
    expected = {name: t for name, t in module.state_dict().items() if name not in tied}
    _compare(expected, state, path)
    # Copied, because what safetensors gives is the file itself; and moved, to hold nothing twice.
    loaded: dict[str, Tensor] = {}
    for name in list(state):
        copy = state.pop(name).to(device=device, dtype=dtype_of(name), copy=True)
        loaded[name] = nn.Parameter(copy, requires_grad=False)
    loaded |= {twin: loaded[name] for twin, name in tied.items()}
    module.load_state_dict(loaded, assign=True)
    module.eval().requires_grad_(False)


def _compare(expected: Mapping[str, Tensor], state: Mapping[str, Tensor], path: Path) -> None:
    """Refuse weights whose names or shapes are not exactly the expected ones."""
    missing = [name for name in expected if name not in state]
    unused = [name for name in state if name not in expected]
    other = [
        f"{name} {list(state[name].shape)} instead of {list(tensor.shape)}"
        for name, tensor in expected.items()
        if name in state and state[name].shape != tensor.shape
    ]
    problems = [
        f"{what} {_some(names)}"
        for what, names in (("lacks", missing), ("has unknown", unused), ("has", other))
        if names
    ]
    if problems:
        raise CheckpointError(
            f"{path} does not fit: it {'; it '.join(problems)}",
            "take a complete file of this very model",
        )


def _some(names: Iterable[str]) -> str:
    """The first names of a list, and how many more there are."""
    listed = sorted(names)
    more = f" and {len(listed) - NAMED} more" if len(listed) > NAMED else ""
    return ", ".join(listed[:NAMED]) + more

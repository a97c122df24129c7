"""Weights of the recorded cases as people have them on disk: a writer for each kind of file.

Names of diffusers come from the recorded key map, other tools' quantized layers from `packing`;
only what `cfgen` itself would have written is written by it.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterable
from pathlib import Path

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as Kind
from safetensors.torch import save_file
from torch import Tensor

from cfgen.checkpoint.convert.convert import Names, plan_convert
from cfgen.checkpoint.convert.input import open_source
from cfgen.checkpoint.convert.output import check
from cfgen.checkpoint.convert.quantize import plan_quantize, save_quantized
from tests.checkpoint import packing, tiny
from tests.golden.cases import FOLDER, recorded_config

Weights = dict[str, Tensor]
Write = Callable[[Weights, Path], Path]
"""Write weights (float32, by Wan's names) into an empty folder; returns what a user names."""

NAME = "weights.safetensors"
MODEL = "diffusion_pytorch_model"

WRAPPED = "model._fsdp_wrapped_module."


@functools.cache
def diffusers_names() -> dict[str, str]:
    """Diffusers' name by Wan's name."""
    return json.loads((FOLDER / "wan_dit_key_map.json").read_text(encoding="utf-8"))


def renamed(weights: Weights) -> Weights:
    return {diffusers_names()[name]: tensor for name, tensor in weights.items()}


def configured(folder: Path, layout: str = "original") -> Path:
    """A folder with the recorded config.json; heads are not 128 wide, so no file does without."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(recorded_config(layout)), encoding="utf-8")
    return folder


def safetensors(
    *, dtype: torch.dtype = torch.float32, prefix: str = "", name: str = NAME, layout: str = ""
) -> Write:
    def write(weights: Weights, folder: Path) -> Path:
        named = renamed(weights) if layout else weights
        path = configured(folder, layout or "original") / name
        save_file({prefix + name: tensor.to(dtype) for name, tensor in named.items()}, path)
        return path

    return write


def shards(weights: Weights, folder: Path, name: str = "model") -> Path:
    """Two shards that split every block, and their index."""
    names, index = list(weights), {}
    for number, part in enumerate((names[::2], names[1::2]), 1):
        shard = f"{name}-0000{number}-of-00002.safetensors"
        save_file({name: weights[name] for name in part}, folder / shard)
        index |= dict.fromkeys(part, shard)
    path = folder / f"{name}.safetensors.index.json"
    path.write_text(json.dumps({"metadata": {}, "weight_map": index}), encoding="utf-8")
    return path


def sharded(weights: Weights, folder: Path) -> Path:
    return shards(weights, configured(folder))


def model_folder(weights: Weights, folder: Path) -> Path:
    return safetensors(name=f"{MODEL}.safetensors")(weights, folder).parent


def pipeline(weights: Weights, folder: Path) -> Path:
    """What diffusers' `save_pretrained` leaves of a whole pipeline's transformer."""
    shards(renamed(weights), configured(folder / "transformer", "diffusers"), MODEL)
    return folder


def fsdp(weights: Weights) -> Weights:
    """Names as FSDP leaves them: around the network and around each block."""

    def wrapped(name: str) -> str:
        parts = name.split(".")
        return ".".join([*parts[:2], "_fsdp_wrapped_module", *parts[2:]])

    return {
        WRAPPED + (wrapped(name) if name.startswith("blocks.") else name): tensor
        for name, tensor in weights.items()
    }


def training_state(weights: Weights, folder: Path) -> Path:
    """Averaged weights, and live ones that give another film."""
    live = {f"model.{name}": tensor * 1.1 for name, tensor in weights.items()}
    path = configured(folder) / "model.pt"
    torch.save({"generator_ema": fsdp(weights), "generator": live, "step": 600}, path)
    return path


def flat_pth(*, zipped: bool = True) -> Write:
    def write(weights: Weights, folder: Path) -> Path:
        path = configured(folder) / "weights.pth"
        torch.save(weights, path, _use_new_zipfile_serialization=zipped)
        return path

    return write


def gguf_file(matrices: Kind, *, four_axes: bool = False) -> Write:
    """GGUF, matrices of blocks in one format and the rest in float32.

    With `four_axes` the patch embedding is folded, as converters do for readers that know no
    fifth axis.
    """

    def write(weights: Weights, folder: Path) -> Path:
        tensors, arrays = {}, {}
        for name, tensor in weights.items():
            kind, array = matrices if tiny.is_packed(name) else Kind.F32, tensor.numpy()
            if four_axes and array.ndim > 4:
                arrays[f"comfy.gguf.orig_shape.{name}"] = list(array.shape)
                array = array.reshape(-1, *array.shape[2:])
            tensors[name] = (gguf.quants.quantize(array, kind), kind)
        return tiny.write_gguf(configured(folder) / "weights.gguf", tensors, arrays=arrays)

    return write


def converted(before: Write, to: Names) -> Write:
    """What `cfgen convert` makes of another file; it puts config.json beside by itself."""

    def write(weights: Weights, folder: Path) -> Path:
        source = open_source(before(weights, folder / "source"))
        rewrite, path = plan_convert(source, to=to), folder / NAME
        check(source, path, nbytes=rewrite.nbytes, overwrite=False)
        rewrite.write(path)
        return path

    return write


def packed(style: tiny.Style) -> Write:
    """Quantized as another tool does it."""

    def named(name: str) -> str:
        return style.prefix + name

    def write(weights: Weights, folder: Path) -> Path:
        tensors = {named(name): array for name, array in style.extra.items()}
        for name, tensor in weights.items():
            if tiny.is_packed(name):
                parts, _ = style.pack(tensor.numpy())
                layer = name.removesuffix(".weight")
                tensors |= {named(f"{layer}.{end}"): np.asarray(p) for end, p in parts.items()}
            else:
                tensors[named(name)] = tensor.numpy()
        metadata = style.header(*_layers_and_others(map(named, weights)))
        return packing.write_safetensors(configured(folder) / NAME, tensors, metadata)

    return write


def _layers_and_others(names: Iterable[str]) -> tuple[list[str], list[str]]:
    names = list(names)
    layers = [name.removesuffix(".weight") for name in names if tiny.is_packed(name)]
    return layers, [name for name in names if not tiny.is_packed(name)]


def quantized(format: str) -> Write:
    """What `cfgen quantize` makes."""

    def write(weights: Weights, folder: Path) -> Path:
        source = open_source(safetensors()(weights, folder / "source"))
        rewrite, _losses = plan_quantize(source, format)
        rewrite.write(folder / NAME)
        return folder / NAME

    return write


def trained(weights: Weights, folder: Path) -> Path:
    """What `cfgen train` saves."""
    path = configured(folder) / NAME
    save_quantized(weights, path, lambda name, _: tiny.is_packed(name))
    return path


EXACT: dict[str, Write] = {
    "safetensors": safetensors(),
    "bfloat16": safetensors(dtype=torch.bfloat16),
    "shards": sharded,
    "folder": model_folder,
    "prefix": safetensors(prefix="model.diffusion_model."),
    "diffusers' names": safetensors(layout="diffusers"),
    "diffusers' pipeline": pipeline,
    "training state": training_state,
    "flat pth": flat_pth(),
    "old pth": flat_pth(zipped=False),
    "GGUF float32": gguf_file(Kind.F32),
    "GGUF bfloat16": gguf_file(Kind.BF16),
    "GGUF of four axes": gguf_file(Kind.F32, four_axes=True),
    "converted training state": converted(training_state, "wan"),
    "converted GGUF, diffusers' names": converted(gguf_file(Kind.BF16), "diffusers"),
}
"""Files that hold the recorded weights bit by bit; all of these are numbers of bfloat16."""

QUANTIZED: dict[str, tuple[Write, float]] = {
    "cfgen train, int8": (trained, 0.011),
    "cfgen quantize, int8": (quantized("int8"), 0.011),
    "cfgen quantize, fp8": (quantized("fp8"), 0.045),
    "cfgen quantize, nvfp4": (quantized("nvfp4"), 0.152),
    "fp8_scaled": (packed(tiny.STYLES["fp8_scaled_kijai"]), 0.045),
    "plain fp8": (packed(tiny.STYLES["fp8_plain_e4m3"]), 0.049),
    "ComfyUI, mxfp8": (packed(tiny.STYLES["comfyquant_mxfp8"]), 0.048),
    "LightX2V, int8": (packed(tiny.STYLES["lightx2v_int8"]), 0.011),
    "LightX2V, fp8": (packed(tiny.STYLES["lightx2v_fp8"]), 0.051),
    "quanto, int8": (packed(tiny.STYLES["quanto_int8"]), 0.010),
    "torchao, int8": (packed(tiny.STYLES["torchao_int8"]), 0.011),
    "GGUF, Q8_0": (gguf_file(Kind.Q8_0), 0.0081),
}
"""Files of fewer bits, and the rms error that they make of LongLive's clip (std 1.475).

The published code's own in bfloat16 is 0.0086; its smallest recorded mistake makes 0.02.
"""

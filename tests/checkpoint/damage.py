"""Hypothesis strategies for files of weights that are damaged, or odd on purpose."""

from __future__ import annotations

import base64
import io
import json
import struct
import zipfile
from pathlib import Path

import numpy as np
import torch
from hypothesis import strategies as st
from safetensors.torch import save as save_bytes

from tests.checkpoint.small import FORMAT, FP8, layer, parts
from tests.checkpoint.tiny import Kind, write_gguf

NUMBERS = [0, 1, 2, 3, 4, 8, 16, 31, 32, 64, 127, 255, 2**16, 2**31 - 1, 2**32 - 1]
NUMBERS += [2**40, 2**53, 2**61, 2**62, 2**63 - 1, 2**63, 2**64 - 1]
AXES = [0, 1, 2, 3, 4, 8, 16, 32, 128, 256]


@st.composite
def damaged(draw: st.DrawFn, content: bytes) -> bytes:
    """A file with a few bits, numbers or pieces changed."""
    found = bytearray(content)
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, len(found)))
        length = draw(st.sampled_from([1, 2, 8, 40]))
        how = draw(st.sampled_from(["flip", "number", "text", "cut", "drop", "repeat", "insert"]))
        if how == "flip" and place < len(found):
            found[place] ^= 1 << draw(st.integers(0, 7))
        elif how == "number":
            number = struct.pack("<Q", draw(st.sampled_from(NUMBERS)))
            found[place : place + length] = number[:length]
        elif how == "text":
            number = str(draw(st.sampled_from([*NUMBERS, -1, 1e400, "null", "[]", '""', "{"])))
            found[place : place + length] = number.encode()
        elif how == "cut":
            del found[place:]
        elif how == "drop":
            del found[place : place + length]
        elif how == "repeat":
            found[place:place] = found[place : place + length]
        else:
            found[place:place] = draw(st.binary(max_size=12))
    return bytes(found)


def safetensors_file() -> bytes:
    """A small file with declared, scaled and plain layers."""
    told = {"_quantization_metadata": json.dumps({"layers": {"k": FORMAT}})}
    tensors = {**parts(), **layer("n", weight=FP8, scale_weight=torch.ones(1))}
    tensors |= {name.replace("m.", "k."): tensor.clone() for name, tensor in parts().items()}
    return save_bytes(tensors, told)


def gguf_file(folder: Path) -> bytes:
    """A small file with blocks, plain numbers and an original shape."""
    tensors = {
        "m.weight": (np.zeros((2, 34), np.uint8), Kind.Q8_0),
        "m.bias": (np.ones(4, np.float32), Kind.F32),
    }
    shapes = {"comfy.gguf.orig_shape.m.bias": [2, 2]}
    return write_gguf(folder / "small.gguf", tensors, arrays=shapes).read_bytes()


def torch_file(*, archive: bool) -> bytes:
    """A small file of nested dictionaries, with a view and a list."""
    whole = torch.arange(6.0).reshape(2, 3)
    content = {"generator": {"a.weight": whole, "b": whole.T}, "step": 3, "more": [torch.ones(1)]}
    file = io.BytesIO()
    torch.save(content, file, _use_new_zipfile_serialization=archive)
    return file.getvalue()


def with_pickle(content: bytes, pickle: bytes) -> bytes:
    """An archive of PyTorch with another pickle in it, its checksums right."""
    file = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(file, "w") as new:
        for member in old.namelist():
            new.writestr(member, pickle if member.endswith("data.pkl") else old.read(member))
    return file.getvalue()


json_values = st.recursive(
    st.none() | st.booleans() | st.sampled_from(NUMBERS) | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3)
    ),
    max_leaves=6,
)
ODD = st.sampled_from([3, 5, 0, -1, 10**400, 1e-6, 2.0, True, "12", None, [1, 2, 2]]) | json_values
CONFIG = {"dim": 12, "ffn_dim": 10, "num_layers": 2, "in_dim": 3, "text_len": 4, "text_dim": 5}
CONFIG |= {"num_attention_heads": 2, "attention_head_dim": 6, "eps": 1e-5, "model_type": "t2v"}
CONFIG |= {"patch_size": [1, 2, 2], "qk_norm": True}
configs = st.fixed_dictionaries(
    {"num_heads": st.just(2) | ODD},
    optional={key: st.just(value) | st.just(value) | ODD for key, value in CONFIG.items()},
)
"""What a config.json may say of a generator that is 12 wide."""

DTYPES = {"F32": 4, "BF16": 2, "F64": 8, "I8": 1, "U8": 1, "F8_E4M3": 1, "F8_E8M0": 1, "I64": 8}
MODULES = ["m", "n", "blocks.0.ffn.0", "blocks.0.attn1.to_q", "vae.x"]
PREFIXES = ["", "", "", "", "model.", "generator.", "generator_ema.", "critic.", "_orig_mod."]
ANCHORS = ["head.modulation", "condition_embedder.time_embedder.linear_1.bias"]
Part = tuple[str, list[int]]
ONE: Part = ("F32", [])
BLOCKED: Part = ("F8_E4M3", [128, 4])
FP4: dict[str, Part] = {"weight": ("U8", [4, 32]), "weight_scale": BLOCKED}
LAYERS: list[dict[str, Part]] = [
    {"weight": ("F32", [4, 8])},
    {"weight": ("F8_E4M3", [4, 8])},
    {"weight": ("F8_E4M3", [4, 8]), "scale_weight": ONE, "scale_input": ONE},
    {"weight": ("F8_E4M3", [4, 8]), "scale_weight": ("F32", [4, 2, 1])},
    {"weight": ("I8", [4, 8]), "weight_scale": ("F32", [4, 1])},
    {"weight": ("I8", [4, 8]), "weight_scale": ("BF16", [2, 2])},
    {"weight": ("F8_E4M3", [4, 32]), "weight_scale": ("U8", [128, 4]), "comfy_quant": ONE},
    {"weight._data": ("I8", [4, 8]), "weight._scale": ("BF16", [4, 1]), "input_scale": ONE},
    {"_weight_qdata": ("I8", [4, 8]), "_weight_scale": ("F32", [4, 1])},
    {**FP4, "weight_scale_2": ONE},
    {**FP4, "weight_global_scale": ONE, "alpha": ONE, "input_global_scale": ONE},
]
"""Parts of layers in every layout, each with its dtype and shape."""
ENDS = sorted({end for parts in LAYERS for end in parts} | {"bias", "_weight_zero_point"})
FORMATS = ["float8_e4m3fn", "int8_tensorwise", "mxfp8", "nvfp4", "int8_blockwise", "awq_w4a16", 3]
SETTINGS = st.fixed_dictionaries(
    {"format": st.sampled_from(FORMATS)},
    optional={
        "convrot": st.booleans(),
        "convrot_groupsize": st.sampled_from([4, 16, 256, -4, 0, "4", None, 3.5, 4**20]),
        "group_size": json_values,
        "params": json_values,
        "full_precision_matrix_mult": json_values,
    },
)


@st.composite
def metadata(draw: st.DrawFn) -> dict[str, str]:
    """A header's metadata that declares layers in several tools' words."""
    found: dict[str, str] = {}
    if draw(st.integers(0, 3)) == 0:
        told = draw(
            st.fixed_dictionaries(
                {"layers": st.dictionaries(st.sampled_from(MODULES), SETTINGS | json_values)}
            )
            | json_values
        )
        found["_quantization_metadata"] = json.dumps(told)
    if draw(st.integers(0, 5)) == 0:
        types = st.sampled_from(["qint8", "qint4", {"weights": "qint8"}, {"weights": []}, None])
        told = draw(st.dictionaries(st.sampled_from(MODULES), types, max_size=2) | json_values)
        found["quantization_map_base64"] = base64.b64encode(json.dumps(told).encode()).decode()
    for module in draw(st.lists(st.sampled_from(MODULES), max_size=1)):
        kinds = st.sampled_from(["Int8Tensor", "Float8Tensor", "NVFP4Tensor", None])
        found[f"{module}.weight"] = json.dumps(
            draw(st.fixed_dictionaries({"_type": kinds}) | json_values)
        )
    return found


@st.composite
def odd_parts(draw: st.DrawFn) -> dict[str, Part]:
    """The parts of a layer, some of them gone, too many or of another dtype or shape."""
    parts = dict(draw(st.sampled_from(LAYERS)))
    for _ in range(draw(st.sampled_from([0, 0, 1, 1, 2]))):
        end = draw(st.sampled_from(ENDS) | st.sampled_from(sorted(parts or {"weight"})))
        dtype, shape = parts.pop(end, ONE)
        match draw(st.sampled_from(["drop", "dtype", "shape", "flat"])):
            case "dtype":
                parts[end] = (draw(st.sampled_from(list(DTYPES))), shape)
            case "shape":
                parts[end] = (dtype, draw(st.lists(st.sampled_from(AXES[:7]), max_size=3)))
            case "flat":
                parts[end] = (dtype, [int(np.prod(shape))])
    return parts


@st.composite
def odd_safetensors(draw: st.DrawFn) -> bytes:
    """A file that is whole, and whose tensors are named and shaped like parts of layers."""
    tensors: dict[str, Part] = {}
    prefix = draw(st.sampled_from(PREFIXES))
    for module in draw(st.lists(st.sampled_from(MODULES), max_size=3)):
        parts = draw(odd_parts())
        tensors |= {f"{prefix}{module}.{end}": part for end, part in parts.items()}
    tensors |= dict.fromkeys(draw(st.lists(st.sampled_from(["scaled_fp8", *ANCHORS]))), ONE)
    header: dict[str, object] = {}
    data = b""
    for name, (dtype, shape) in tensors.items():
        size = DTYPES[dtype] * int(np.prod(shape, dtype=np.int64))
        raw = draw(st.sampled_from([b"\x3f", b"\x3f", b"\0", b"\x7f", b"\xff"])) * size
        if name.endswith(".comfy_quant"):
            raw = json.dumps(draw(SETTINGS | json_values)).encode()
            dtype, shape = "U8", [len(raw)]
        place = [len(data), len(data) + len(raw)]
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": place}
        data += raw
    if told := draw(metadata()):
        header["__metadata__"] = told
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def string(text: str) -> bytes:
    return struct.pack("<Q", len(text.encode())) + text.encode()


NAMES = st.builds(
    lambda prefix, module, end: f"{prefix}{module}.{end}",
    *(st.sampled_from(pool) for pool in (PREFIXES, MODULES, ENDS)),
) | st.sampled_from(["scaled_fp8", "two\nlines", *ANCHORS])


@st.composite
def gguf_value(draw: st.DrawFn, depth: int = 0) -> bytes:
    """The type and the bytes of a value, arrays in arrays included."""
    kind = draw(st.sampled_from([0, 4, 4, 6, 7, 8, 9, 9, 10, 12, *([13, 77] if depth else [])]))
    head = struct.pack("<I", kind)
    if kind == 8:
        return head + string(draw(st.text(max_size=4)))
    if kind == 9 and depth < 6:
        inner = draw(gguf_value(depth + 1))
        count = draw(st.sampled_from([0, 1, 1, 2, *NUMBERS[-4:]]))
        return head + inner[:4] + struct.pack("<Q", count) + inner[4:] * min(count, 2)
    sizes = {0: 1, 4: 4, 6: 4, 7: 1, 10: 8, 12: 8}
    return head + draw(st.binary(min_size=sizes.get(kind, 3), max_size=sizes.get(kind, 3)))


@st.composite
def odd_gguf(draw: st.DrawFn) -> bytes:
    """A file whose header is well formed and says odd things."""
    keys = ["general.alignment", "comfy.gguf.orig_shape.m.weight", "general.architecture", "k"]
    chosen = draw(st.lists(st.sampled_from(keys), max_size=2, unique=draw(st.booleans())))
    pairs = [string(key) + draw(gguf_value()) for key in chosen]
    tensors, place = [], 0
    for name in draw(st.lists(NAMES, max_size=4, unique=draw(st.booleans()))):
        shape = draw(st.lists(st.sampled_from([32, 256, *AXES[1:], *NUMBERS[-2:]]), max_size=3))
        kind = draw(st.sampled_from([0, 0, 1, 2, 8, 10, 12, 14, 20, 23, 24, 30, 99]))
        offset = draw(st.sampled_from([place, place, place, place, place, 1, *NUMBERS[-2:]]))
        axes = struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
        tensors.append(string(name) + axes + struct.pack("<IQ", kind, offset))
        place += draw(st.sampled_from([1024, 8192, 32]))
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(pairs)) + b"".join(pairs + tensors)
    return head + bytes(-len(head) % 32) + b"\x3c" * place


@st.composite
def tensors(draw: st.DrawFn) -> torch.Tensor:
    """A tensor of any dtype that torch saves, whole or a view of another."""
    dtype = draw(
        st.sampled_from([torch.float32, torch.bfloat16, torch.int8, torch.bool, torch.uint8])
    )
    shape = draw(st.lists(st.sampled_from(AXES[:5]), max_size=3))
    found = torch.zeros(shape, dtype=dtype)
    how = draw(
        st.sampled_from(["whole", "turned", "wide", "whole", "whole", "part", "sparse", "hollow"])
    )
    if how == "turned":
        found = found.mT if found.ndim > 1 else found
    elif how == "wide":
        found = torch.zeros((), dtype=dtype).expand(draw(st.sampled_from([1, 100, 2**40])))
    elif how == "sparse" and found.ndim:
        found = found.to_sparse()
    elif how == "part" and found.numel():
        found = found.flatten()[-1:]
    elif how == "hollow":
        found = found.to("meta")
    return found


keys = NAMES | NAMES | st.integers(0, 1) | st.sampled_from(["0", None, True, (1,), "a/b", "é"])
contents = st.dictionaries(
    keys,
    st.recursive(
        tensors() | tensors() | st.none() | st.integers() | st.floats(),
        lambda inner: st.dictionaries(keys, inner, max_size=3) | st.lists(inner, max_size=3),
        max_leaves=5,
    ),
    max_size=5,
)
"""What people put into files of PyTorch."""

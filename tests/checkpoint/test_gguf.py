"""GGUF files: read as their writers meant them; headers that lie are refused before they cost."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType as Kind

from cfgen.checkpoint.formats.open import open_container
from cfgen.checkpoint.networks.fill import load_generator, open_generator
from cfgen.errors import CheckpointError
from cfgen.model.quantized import QuantizedLinear
from tests.checkpoint import tiny
from tests.checkpoint.small import load_state

TinyFile = Callable[[str], tiny.Tiny]
Q4_K = tiny.pack_gguf(Kind.Q4_K)


def test_metadata_and_entries_are_those_that_gguf_reads(tiny_file: TinyFile) -> None:
    path = tiny_file("gguf_Q4_K").path
    file, reader = open_container(path), gguf.GGUFReader(path)
    assert file.kind == "GGUF version 3"
    assert file.files == (path,)
    assert file.metadata["general.architecture"] == "wan"
    assert file.metadata["general.file_type"] == int(gguf.LlamaFileType.MOSTLY_Q8_0)
    assert {t.name for t in reader.tensors} == set(file.entries)
    for tensor in reader.tensors:
        entry = file.entries[tensor.name]
        assert entry.shape == tuple(int(n) for n in reversed(tensor.shape))
        assert entry.nbytes == tensor.n_bytes
        read = file.read(tensor.name)
        assert read.contiguous().view(torch.uint8).numpy().tobytes() == tensor.data.tobytes()


@pytest.mark.parametrize("architecture", ["", "pig", "cow", "sd"])
def test_the_network_is_told_by_its_names_not_its_architecture(
    architecture: str, tmp_path: Path
) -> None:
    tensors, weights = Q4_K
    path = tiny.write_gguf(tmp_path / "model.gguf", tensors, architecture=architecture)
    assert ("general.architecture" in open_container(path).metadata) == (architecture != "")
    assert open_generator(path).shapes == {name: w.shape for name, w in weights.items()}


def test_prefix_comes_off_and_the_original_shape_comes_back(tmp_path: Path) -> None:
    tensors, weights = Q4_K
    name = "patch_embedding.weight"
    flat = {**tensors, name: (weights[name].reshape(-1, 64), Kind.F32)}
    for prefix, key in (("", name), ("model.diffusion_model.", f"model.diffusion_model.{name}")):
        for told in {key, name}:
            path = tiny.write_gguf(
                tmp_path / "model.gguf",
                {prefix + name: tensor for name, tensor in flat.items()},
                arrays={f"comfy.gguf.orig_shape.{told}": list(weights[name].shape)},
            )
            generator = load_generator(path)
            assert np.array_equal(generator.patch_embedding.weight.numpy(), weights[name])
            kept = generator.blocks[0].ffn[0]
            assert isinstance(kept, QuantizedLinear)
            found = kept.weight.dequantize(torch.float32).numpy()
            assert np.array_equal(found, weights["blocks.0.ffn.0.weight"])


def test_halves_and_small_quantized_tensors_of_other_ranks_are_read(tmp_path: Path) -> None:
    tensors = dict(Q4_K[0])
    wanted = {}
    for name, kind in (
        ("blocks.0.modulation", Kind.Q8_0),
        ("head.modulation", Kind.F16),
        ("blocks.0.ffn.0.bias", Kind.Q8_0),
        ("blocks.0.self_attn.norm_q.weight", Kind.Q4_0),
    ):
        data = gguf.quants.quantize(tiny.source()[name], kind)
        tensors[name] = (data, kind)
        wanted[name] = gguf.quants.dequantize(data, kind)
    found = load_generator(tiny.write_gguf(tmp_path / "model.gguf", tensors)).state_dict()
    for name, weight in wanted.items():
        assert np.array_equal(found[name].numpy(), weight.reshape(tiny.source()[name].shape)), name


def string(text: str | bytes) -> bytes:
    raw = text if isinstance(text, bytes) else text.encode()
    return struct.pack("<Q", len(raw)) + raw


def pair(key: str, kind: int, value: bytes) -> bytes:
    return string(key) + struct.pack("<I", kind) + value


def tensor(name: str | bytes, shape: list[int], kind: int = 0, offset: int = 0) -> bytes:
    axes = struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
    return string(name) + axes + struct.pack("<IQ", kind, offset)


def whole(
    *,
    tensors: list[bytes] | None = None,
    pairs: list[bytes] | None = None,
    data: int = 64,
    version: int = 3,
    counts: tuple[int, int] | None = None,
) -> bytes:
    tensors, pairs = tensors or [], pairs or []
    told = counts or (len(tensors), len(pairs))
    head = b"GGUF" + struct.pack("<IQQ", version, *told) + b"".join(pairs) + b"".join(tensors)
    return head + bytes(-len(head) % 32) + bytes(data)


STRING, ARRAY, UINT8, UINT32, FLOAT32, BOOL, UINT64 = 8, 9, 0, 4, 6, 7, 10
NESTED = struct.pack("<IQ", ARRAY, 1) * 5 + struct.pack("<IQ", UINT8, 0)


def orig(shape: list[int], kind: int = 5, letter: str = "i") -> bytes:
    value = struct.pack(f"<IQ{len(shape)}{letter}", kind, len(shape), *shape)
    return pair("comfy.gguf.orig_shape.a", ARRAY, value)


HOSTILE = {
    "header cut": (whole(tensors=[tensor("a", [4])])[:40], "its header asks for more than 40 by"),
    "counts cut": (b"GGUF\x03\0\0\0", "its header asks for more than 8 bytes"),
    "data cut": (whole(tensors=[tensor("a", [400])]), "is cut off: a ends at byte"),
    "version 1": (whole(version=1), "is GGUF version 1; versions 2 and 3"),
    "other byte order": (whole(version=3 << 24), "in little-endian order"),
    "endless tensors": (whole(counts=(2**63, 0)), "its header asks for more than"),
    "endless pairs": (whole(counts=(0, 2**63)), "its header asks for more than"),
    "endless name": (
        whole(counts=(1, 0), data=64)[:24] + struct.pack("<Q", 2**62) + bytes(64),
        "asks",
    ),
    "endless array": (
        whole(pairs=[pair("a", ARRAY, struct.pack("<IQ", UINT64, 2**61))]),
        "its header asks for more than",
    ),
    "endless texts": (
        whole(pairs=[pair("a", ARRAY, struct.pack("<IQ", STRING, 2**61))]),
        "its header asks for more than",
    ),
    "endless arrays": (
        whole(pairs=[pair("a", ARRAY, struct.pack("<IQ", ARRAY, 2**61))]),
        "its header asks for more than",
    ),
    "deep arrays": (whole(pairs=[pair("a", ARRAY, NESTED)]), "arrays nested more than 4 deep"),
    "unknown value": (whole(pairs=[pair("a", 99, b"")]), "a value of the unknown type 99"),
    "array of the unknown": (
        whole(pairs=[pair("a", ARRAY, struct.pack("<IQ", 77, 1))]),
        "a value of the unknown type 77",
    ),
    "key twice": (
        whole(pairs=[pair("a", UINT8, b"\1"), pair("a", UINT8, b"\2")]),
        "it holds the key a twice",
    ),
    "name twice": (whole(tensors=[tensor("a", [4]), tensor("a", [4])]), "it holds a twice"),
    "many axes": (whole(tensors=[tensor("a", [1] * 9)]), "it holds a with 9 axes"),
    "very many axes": (whole(tensors=[string("a") + struct.pack("<I", 2**32 - 1)]), "axes"),
    "axis of nothing": (whole(tensors=[tensor("a", [0, 2**63])]), "it holds a without numbers"),
    "overflow": (whole(tensors=[tensor("a", [2**62, 2**62])]), "is cut off: a ends at byte"),
    "offset outside": (whole(tensors=[tensor("a", [4], 0, 2**63)]), "is cut off: a ends at byte"),
    "same place": (
        whole(tensors=[tensor("a", [8]), tensor("b", [8], 0, 28)]),
        "it holds a and b in the same place",
    ),
    "no alignment": (
        whole(pairs=[pair("general.alignment", UINT32, struct.pack("<I", 0))]),
        "an alignment of 0",
    ),
    "alignment of text": (
        whole(pairs=[pair("general.alignment", STRING, string("32"))]),
        "an alignment of 32",
    ),
    "unknown type": (whole(tensors=[tensor("a", [32], 4444)]), "a is stored as type 4444, which"),
    "type not computed with": (
        whole(tensors=[tensor("a", [256], int(Kind.IQ2_XXS))]),
        "a is stored as IQ2_XXS, which cfgen does not compute with; it reads F64, F32",
    ),
    "half a block": (
        whole(tensors=[tensor("a", [48, 2], int(Kind.Q8_0))]),
        "a [2, 48] cannot be Q8_0, whose rows are multiples of 32",
    ),
    "block of no axis": (whole(tensors=[tensor("a", [], int(Kind.Q8_0))]), "a [] cannot be Q8_0"),
    "other original shape": (whole(tensors=[tensor("a", [4])], pairs=[orig([3])]), "does not fit"),
    "turned original shape": (
        whole(tensors=[tensor("a", [4])], pairs=[orig([-2, -2])]),
        "an original shape of a that does not fit: [-2 -2]",
    ),
    "original shape of floats": (
        whole(tensors=[tensor("a", [4])], pairs=[orig([2, 2], FLOAT32, "f")]),
        "an original shape of a that does not fit",
    ),
    "original shape of one number": (
        whole(tensors=[tensor("a", [4])], pairs=[pair("comfy.gguf.orig_shape.a", UINT8, b"\4")]),
        "an original shape of a that does not fit: 4",
    ),
    "name of two lines": (whole(tensors=[tensor("a\nb", [4])]), r"no tensor is named 'a\nb'"),
    "name that is no text": (whole(tensors=[tensor(b"\xff\n", [4])]), "no tensor is named"),
    "long name": (whole(tensors=[tensor("a." * 5000, [4])]), "is damaged: it holds a.a.a.a"),
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_file_is_refused(kind: str, tmp_path: Path) -> None:
    content, reason = HOSTILE[kind]
    path = tmp_path / "model.gguf"
    path.write_bytes(content)
    for load in (open_container, load_state, load_generator):
        with pytest.raises(CheckpointError) as caught:
            load(path)
        assert reason in caught.value.message
        assert str(path) in caught.value.message
        assert "\n" not in caught.value.message


def test_every_kind_of_value_is_read(tmp_path: Path) -> None:
    texts = struct.pack("<IQ", STRING, 2) + string("x") + string("yz")
    inner = struct.pack("<IQ2B", UINT8, 2, 5, 6)
    pairs = [
        pair("flag", BOOL, b"\1"),
        pair("small", 1, struct.pack("<b", -3)),
        pair("half", 12, struct.pack("<d", 0.5)),
        pair("texts", ARRAY, texts),
        pair("arrays", ARRAY, struct.pack("<IQ", ARRAY, 1) + inner),
        pair("general.alignment", UINT32, struct.pack("<I", 64)),
    ]
    head = whole(tensors=[tensor("a", [2])], pairs=pairs, data=0)
    path = tmp_path / "model.gguf"
    path.write_bytes(head + bytes(-len(head) % 64) + struct.pack("<2f", 1.5, -2))
    file = open_container(path)
    found = dict(file.metadata)
    assert found.pop("arrays")[0].tolist() == [5, 6]  # type: ignore[index]
    assert found == {
        "flag": True,
        "small": -3,
        "half": 0.5,
        "texts": ["x", "yz"],
        "general.alignment": 64,
    }
    assert file.read("a").tolist() == [1.5, -2]


def test_any_cut_is_found(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    content = whole(tensors=[tensor("a", [8]), tensor("b", [8], 0, 32)], data=64)
    path.write_bytes(content)
    assert set(load_state(path)) == {"a", "b"}
    for length in range(4, len(content), 3):
        path.write_bytes(content[:length])
        with pytest.raises(CheckpointError, match="cut off"):
            load_state(path)

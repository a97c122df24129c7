"""Small files that announce much take neither memory nor time, whatever becomes of them."""

from __future__ import annotations

import io
import json
import struct
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch

from tests.checkpoint import damage
from tests.checkpoint.damage import string

MEGABYTE = 1_000_000


def safetensors(text: bytes, announced: int | None = None) -> bytes:
    return struct.pack("<Q", len(text) if announced is None else announced) + text


def gguf(pairs: bytes, counts: tuple[int, int]) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", 3, *counts) + pairs


def array(kind: int, count: int, content: bytes = b"") -> bytes:
    return string("k") + struct.pack("<IIQ", 9, kind, count) + content


def compressed() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a/data.pkl", bytes(200 * MEGABYTE))
    return file.getvalue()


def nested(levels: int, width: int, inner: object) -> bytes:
    content = inner
    for _ in range(levels):
        content = {str(i): content for i in range(width)}
    file = io.BytesIO()
    torch.save(content, file)
    return file.getvalue()


def pickled(code: bytes) -> bytes:
    return damage.with_pickle(damage.torch_file(archive=True), b"\x80\x02" + code)


def bare_pickle_of_a_long_storage() -> bytes:
    before, _, behind = damage.torch_file(archive=False).partition(b"K\x06N")
    assert behind
    return before + b"\x8a\x06\0\0\0\0\0\x10N" + behind


def tensors_in_one_place(count: int) -> bytes:
    one = struct.pack("<IQIQ", 1, 4 * 50_000, 0, 0)
    head = gguf(b"".join(string(f"m{i}") + one for i in range(count)), (count, 0))
    return head + bytes(-len(head) % 32) + bytes(4 * 200_000)


LIES = {
    "header of 100 MB": lambda: safetensors(b"{}", 99 * MEGABYTE),
    "header of lists": lambda: safetensors(b'{"a":[' + b"[]," * 330_000 + b"[]]}"),
    "header of nothing": lambda: safetensors(b'{"a":{' + b'"":0,' * 200_000 + b'"":0}}'),
    "deep header": lambda: safetensors(b'{"a":' * 150_000),
    "metadata of lists": lambda: safetensors(
        json.dumps({"__metadata__": {"_quantization_metadata": "[" + "[]," * 330_000}}).encode()
    ),
    "numbers without end": lambda: gguf(array(10, 2**60), (0, 1)),
    "texts without end": lambda: gguf(array(8, 2**60), (0, 1)),
    "arrays without end": lambda: gguf(array(9, 2**60), (0, 1)),
    "pairs without end": lambda: gguf(bytes(MEGABYTE), (0, 2**60)),
    "tensors without end": lambda: gguf(bytes(MEGABYTE), (2**60, 0)),
    "many empty texts": lambda: gguf(array(8, 120_000, bytes(8 * 120_000)), (0, 1)),
    "many empty arrays": lambda: gguf(array(9, 80_000, bytes(12 * 80_000)), (0, 1)),
    "a huge tensor": lambda: gguf(
        string("m") + struct.pack("<I2QIQ", 2, 2**20, 2**20, 0, 0), (1, 0)
    ),
    "tensors in one place": lambda: tensors_in_one_place(2000),
    "zip bomb": compressed,
    "pickle bomb": lambda: nested(7, 30, torch.zeros(1)),
    "pickle bomb of nothing": lambda: nested(7, 100, {}),
    "pickle of a long text": lambda: pickled(b"\x8d" + struct.pack("<Q", 2**40) + b"x."),
    "pickle of a long storage": lambda: pickled(
        b"(X\7\0\0\0storagectorch\nFloatStorage\nX\1\0\0\x000X\3\0\0\0cpu\x8a\6\0\0\0\0\0\x10tQ."
    ),
    "bare pickle of a long storage": bare_pickle_of_a_long_storage,
}
"""Files of at most a megabyte or two, by what they announce."""

SCRIPT = """
import json, pathlib, re, sys, time
from cfgen.checkpoint.networks.fill import open_generator
from tests.checkpoint.small import load_state
from cfgen.errors import CheckpointError

def peak():
    status = pathlib.Path("/proc/self/status").read_text()
    return int(re.search(r"VmHWM:\\s+(\\d+)", status)[1]) / 1024

good, *others = map(pathlib.Path, sys.argv[1:])
for path in good.iterdir():
    load_state(path)
found = {}
for path in others:
    pathlib.Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    memory, start = peak(), time.perf_counter()
    for load in (load_state, open_generator):
        try:
            load(path)
        except CheckpointError:
            pass
    found[path.name] = [peak() - memory, time.perf_counter() - start]
sys.stdout.write(json.dumps(found))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="measures memory as Linux counts it")
def test_headers_of_small_files_take_little_memory_and_time(tmp_path: Path) -> None:
    good = tmp_path / "good"
    good.mkdir()
    (good / "a.gguf").write_bytes(damage.gguf_file(tmp_path))
    (good / "a.pt").write_bytes(damage.torch_file(archive=True))
    (good / "b.pt").write_bytes(damage.torch_file(archive=False))
    (good / "a.safetensors").write_bytes(damage.safetensors_file())
    paths = []
    for name, make in LIES.items():
        paths.append(tmp_path / name)
        paths[-1].write_bytes(make())
        assert paths[-1].stat().st_size < 2 * MEGABYTE, name
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, good, *paths],
        cwd=Path(__file__).parents[2],  # where the package `tests` is
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found.keys() == LIES.keys()
    assert {name: mb for name, (mb, _) in found.items() if mb > 50} == {}
    assert {name: s for name, (_, s) in found.items() if s > 10} == {}

"""Memory and time of a UMT5-XXL-shaped encoder in ComfyUI's `fp8_scaled` layout, on the CPU.

    python tests/bench/text_encoder.py                the table in float16, as it is published
    python tests/bench/text_encoder.py --table fp8    the table in fp8 too

Random weights of the real shapes are written tensor by tensor into a folder that is thrown away.
A process of its own loads the file and encodes one prompt. The figures go to standard output.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path

import torch
from torch import Tensor

from cfgen.checkpoint.formats.base import Entry
from cfgen.checkpoint.formats.safetensors import write_stream
from cfgen.checkpoint.networks.text_encoder import load_text_encoder
from cfgen.model.tokenizer import Pieces

ROWS, PIECES, WIDTH, FFN, HEADS, BLOCKS = 256384, 256000, 4096, 10240, 64, 24
BLOCK = {
    "layer.0.layer_norm": (WIDTH,),
    "layer.0.SelfAttention.q": (WIDTH, WIDTH),
    "layer.0.SelfAttention.k": (WIDTH, WIDTH),
    "layer.0.SelfAttention.v": (WIDTH, WIDTH),
    "layer.0.SelfAttention.o": (WIDTH, WIDTH),
    "layer.0.SelfAttention.relative_attention_bias": (32, HEADS),
    "layer.1.layer_norm": (WIDTH,),
    "layer.1.DenseReluDense.wi_0": (FFN, WIDTH),
    "layer.1.DenseReluDense.wi_1": (FFN, WIDTH),
    "layer.1.DenseReluDense.wo": (WIDTH, FFN),
}
FP8 = "float8_e4m3fn"
PROMPT = " ".join(f"w{i * 997}" for i in range(60))


def entries(table: str) -> dict[str, Entry]:
    """What the file holds, by name."""
    shapes = {"shared": (ROWS, WIDTH), "encoder.final_layer_norm": (WIDTH,)}
    for i in range(BLOCKS):
        shapes |= {f"encoder.block.{i}.{name}": shape for name, shape in BLOCK.items()}
    found = {}
    for name, shape in shapes.items():
        small = len(shape) == 2 and shape[0] > 32 and (name != "shared" or table == "fp8")
        kind, size = (FP8, 1) if small else ("float16", 2)
        found[f"{name}.weight"] = Entry(kind, shape, size * math.prod(shape))
        if small:
            found[f"{name}.scale_weight"] = Entry("float32", (), 4)
    found["scaled_fp8"] = Entry(FP8, (0,), 0)
    model = len(tokenizer().model())
    found["spiece_model"] = Entry("uint8", (model,), model)
    return found


def tokenizer() -> Pieces:
    """As many pieces as UMT5 has, which are the words `w0`, `w1`, …."""
    texts = ["<pad>", "</s>", "<unk>", *(f"<0x{i:02X}>" for i in range(256))]
    kinds = [3, 3, 2, *[6] * 256]
    words = PIECES - len(texts)
    return Pieces(
        texts=[*texts, *(f"▁w{i}" for i in range(words))],
        scores=[*[0.0] * len(texts), *[-12.0] * words],
        kinds=[*kinds, *[1] * words],
    )


def random(name: str, entry: Entry) -> Tensor:
    """Weights about as large as trained ones."""
    if name == "spiece_model":
        return torch.frombuffer(bytearray(tokenizer().model()), dtype=torch.uint8)
    if entry.kind == FP8:
        bits = torch.randint(0, 256, entry.shape, dtype=torch.uint8)
        return bits.bitwise_and_(0xBF).view(torch.float8_e4m3fn)  # below 2, and no NaN
    if not entry.shape:
        return torch.tensor(0.002 if ".q." in name else 0.02)
    if "norm" in name:
        return torch.ones(entry.shape, dtype=torch.float16)
    return torch.empty(entry.shape, dtype=torch.float16).normal_()


def peak_gb() -> float:
    """Most memory that this process ever held at once; of Linux, whose getrusage counts parents."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024 / 1e9


def measure(path: Path, dtype: torch.dtype) -> None:
    """Load the file, encode the prompt, write figures to standard output."""
    import transformers  # noqa: F401 (its own memory is no part of the encoder's)

    before = peak_gb()
    began = time.monotonic()
    encoder = load_text_encoder(path, text_len=512, dtype=dtype)
    loaded = time.monotonic()
    peak_loaded = peak_gb()
    with torch.inference_mode():
        embedded = encoder([PROMPT])
    done = time.monotonic()
    assert bool(torch.isfinite(embedded).all())
    held = sum(t.nbytes for t in (*encoder.parameters(), *encoder.buffers()))
    figures = {
        "file_gb": path.stat().st_size / 1e9,
        "weights_in_memory_gb": held / 1e9,
        "peak_rss_before_gb": before,
        "peak_rss_loaded_gb": peak_loaded,
        "peak_rss_gb": peak_gb(),
        "as_float32_gb": sum(math.prod(e.shape) for e in entries("fp8").values()) * 4 / 1e9,
        "load_s": loaded - began,
        "encode_s": done - loaded,
        "tokens": len(encoder.tokens(PROMPT)),
        "dtype": str(dtype).removeprefix("torch."),
        "threads": torch.get_num_threads(),
        "load_average": os.getloadavg()[0],
        "cpu": platform.processor() or platform.machine(),
        "versions": {name: version(name) for name in ("torch", "transformers", "sentencepiece")},
    }
    rounded = {k: round(v, 2) if isinstance(v, float) else v for k, v in figures.items()}
    sys.stdout.write(json.dumps(rounded, indent=1) + "\n")


def main() -> None:
    """Write the file, measure in another process, delete it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--table", choices=("float16", "fp8"), default="float16")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--folder", type=Path, help="where 7 GB may be written for a while")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    told = parser.parse_args()
    if told.measure:
        measure(told.measure, getattr(torch, told.dtype))
        return
    with tempfile.TemporaryDirectory(dir=told.folder) as folder:
        path = Path(folder) / "umt5_xxl_fp8_e4m3fn_scaled.safetensors"
        listed = entries(told.table)
        write_stream(listed, lambda name: random(name, listed[name]), path, {})
        command = [sys.executable, __file__, "--dtype", told.dtype, "--measure", str(path)]
        sys.exit(subprocess.run(command, check=False).returncode)


if __name__ == "__main__":
    main()

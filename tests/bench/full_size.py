"""Models of the real sizes, random in every weight: what they take to load and to render.

    python tests/bench/full_size.py make FOLDER            # writes the files, about 8 GB
    python tests/bench/full_size.py render FOLDER [--results FILE]

`make` writes a Wan2.1-1.3B generator in bf16, fp8_scaled, int8 and GGUF Q4_K, a UMT5 encoder of one
layer in the real widths, and a Wan VAE of the real size. `render` makes two chunks at 128x128 with
each, in a process of its own, and sets peak memory and load time beside file size and prediction.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from kept import keep
from torch import Tensor

from cfgen.checkpoint.formats.base import Entry
from cfgen.checkpoint.formats.safetensors import write_stream
from cfgen.model.generator import Generator, WanConfig

WAN = WanConfig(dim=1536, ffn_dim=8960, num_heads=12, num_layers=30)
MATRIX = re.compile(r"blocks\.\d+\.((self|cross)_attn\.[qkvo]|ffn\.[02])\.weight")
KINDS = ("bf16", "fp8_scaled", "int8", "Q4_K")
FRAMES_S = 21 / 16
"""Seconds of two chunks: 9 frames and 12."""


def shapes() -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        return {n: tuple(t.shape) for n, t in Generator(WAN).state_dict().items()}


def plain(name: str, shape: tuple[int, ...]) -> Tensor:
    """Random numbers of a size that keeps activations finite."""
    if "norm" in name and name.endswith("weight"):
        return torch.ones(shape, dtype=torch.bfloat16)
    noise = torch.Generator().manual_seed(hash(name) & 0xFFFF)
    fan = math.prod(shape[1:]) if len(shape) > 1 else 64
    return torch.randn(shape, generator=noise, dtype=torch.bfloat16) / math.sqrt(fan)


def write_scaled(path: Path, kind: str) -> None:
    """fp8_scaled as Kijai writes it, or int8 with a scale a row in ComfyUI's native layout."""
    entries: dict[str, Entry] = {}
    for name, shape in shapes().items():
        if not MATRIX.fullmatch(name):
            entries[name] = Entry("bfloat16", shape, 2 * math.prod(shape))
            continue
        layer = name.removesuffix(".weight")
        if kind == "fp8_scaled":
            entries[name] = Entry("float8_e4m3fn", shape, math.prod(shape))
            entries[f"{layer}.scale_weight"] = Entry("float32", (), 4)
        else:
            marker = len(b'{"format": "int8_tensorwise"}')
            entries[name] = Entry("int8", shape, math.prod(shape))
            entries[f"{layer}.weight_scale"] = Entry("float32", (shape[0], 1), 4 * shape[0])
            entries[f"{layer}.comfy_quant"] = Entry("uint8", (marker,), marker)
    if kind == "fp8_scaled":
        entries["scaled_fp8"] = Entry("float8_e4m3fn", (0,), 0)

    def tensor(name: str) -> Tensor:
        one = entries[name]
        if name.endswith(".comfy_quant"):
            return torch.tensor(list(b'{"format": "int8_tensorwise"}'), dtype=torch.uint8)
        if name.endswith(("_scale", "scale_weight")):
            return torch.full(one.shape, 0.02 / 40)
        if one.kind == "int8":
            return (torch.randn(one.shape) * 40).round().clamp(-127, 127).to(torch.int8)
        if one.kind == "float8_e4m3fn":
            return (torch.randn(one.shape) * 40).to(torch.float8_e4m3fn)
        return plain(name, one.shape)

    write_stream(entries, tensor, path, {})


def write_gguf(path: Path) -> None:
    import gguf
    import numpy as np

    kind = gguf.GGMLQuantizationType.Q4_K
    block, nbytes = gguf.GGML_QUANT_SIZES[kind]
    writer = gguf.GGUFWriter(path, "wan", use_temp_file=True)
    noise = np.random.default_rng(0)
    for name, shape in shapes().items():
        if not MATRIX.fullmatch(name):
            writer.add_tensor(name, plain(name, shape).float().numpy())
            continue
        raw = noise.integers(0, 256, (math.prod(shape) // block, nbytes), dtype=np.uint8)
        for offset, value in ((0, 4e-5), (2, 3e-4)):  # d and dmin keep the numbers small
            half = np.full(len(raw), value, np.float16)
            raw[:, offset : offset + 2] = half.view(np.uint8).reshape(-1, 2)
        writer.add_tensor(name, raw.reshape(shape[0], -1), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def write_network(path: Path, network: Callable[[], torch.nn.Module], skip: str = "") -> None:
    """The tensors of a network made on the meta device, in bf16."""
    with torch.device("meta"):
        named = {n: tuple(t.shape) for n, t in network().state_dict().items() if n != skip}
    entries = {n: Entry("bfloat16", s, 2 * math.prod(s)) for n, s in named.items()}
    write_stream(entries, lambda name: plain(name, entries[name].shape), path, {})


def make(folder: Path) -> None:
    from diffusers import AutoencoderKLWan

    folder.mkdir(parents=True, exist_ok=True)
    named = shapes()
    bf16 = {n: Entry("bfloat16", s, 2 * math.prod(s)) for n, s in named.items()}
    write_stream(bf16, lambda n: plain(n, named[n]), folder / "bf16.safetensors", {})
    for kind in ("fp8_scaled", "int8"):
        write_scaled(folder / f"{kind}.safetensors", kind)
    write_gguf(folder / "Q4_K.gguf")
    write_network(folder / "vae.safetensors", AutoencoderKLWan)
    make_text_encoder(folder / "text_encoder")


def make_text_encoder(folder: Path) -> None:
    """UMT5-XXL's widths with one layer, and a table as long as mini's tokenizer needs."""
    from transformers import UMT5Config, UMT5EncoderModel

    small = {"d_model": 4096, "d_kv": 64, "num_heads": 64, "num_layers": 1, "d_ff": 1024}
    text = {**small, "vocab_size": 512, "feed_forward_proj": "gated-gelu"}
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(
        json.dumps({"model_type": "umt5", **text}), encoding="utf-8"
    )
    write_network(
        folder / "model.safetensors",
        lambda: UMT5EncoderModel(UMT5Config(**text)),
        skip="encoder.embed_tokens.weight",
    )


def render(folder: Path, kind: str, more: list[str]) -> dict[str, object]:
    """One render in a process of its own."""
    weights = next(p for p in folder.glob(f"{kind}.*") if p.suffix in (".safetensors", ".gguf"))
    from cfgen.config.presets import presets_folder

    tokenizer = presets_folder() / "mini" / "tokenizer" / "tokenizer.json"
    output = folder / f"{kind}.mp4"
    words = ["render", "a fox crosses a frozen lake", "--preset", "self-forcing", "--seed", "1"]
    words += ["--model", str(weights), "--vae", str(folder / "vae.safetensors")]
    words += ["--text-encoder", str(folder / "text_encoder"), "--tokenizer", str(tokenizer)]
    words += [
        "--set",
        "model.sizes=[128x128]",
        "--duration",
        f"{FRAMES_S}",
        "-o",
        str(output),
        "-y",
    ]
    words += ["--json", "--clean", *more]
    predicted = planned(words)
    began = time.monotonic()
    code = (
        "import resource,sys;from cfgen.cli.app import app;sys.argv[0]='cfgen'\n"
        "try:\n app()\n"
        "finally:\n print('PEAK', resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,"
        "file=sys.stderr)"
    )
    env = {**os.environ, "GOMP_SPINCOUNT": "2000"}
    done = subprocess.run(
        [sys.executable, "-c", code, *words], capture_output=True, text=True, env=env
    )
    wall = time.monotonic() - began
    if done.returncode:
        raise SystemExit(done.stdout[-2000:] + done.stderr[-4000:])
    peak = int(re.findall(r"PEAK (\d+)", done.stderr)[-1]) * 1024
    events = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    loaded = next(e for e in events if e.get("type") == "load")
    return {
        "kind": kind,
        "file_MB": round(weights.stat().st_size / 1e6),
        "peak_rss_MB": round(peak / 1e6),
        "predicted_MB": predicted // 1_000_000,
        "load_s": loaded["seconds"],
        "wall_s": round(wall, 1),
    }


def planned(words: list[str]) -> int:
    """Bytes of memory that `cfgen plan` predicts for a render."""
    leave = {"--seed", "-o"}
    kept = [w for i, w in enumerate(words[2:]) if w not in leave and words[i + 1] not in leave]
    kept = [word for word in kept if word not in ("-y", "--clean", "--json")]
    told = subprocess.run(
        [sys.executable, "-m", "cfgen", "plan", *kept, "--json"], capture_output=True, text=True
    )
    if told.returncode:
        raise SystemExit(told.stderr)
    return int(json.loads(told.stdout.splitlines()[-1])["data"]["memory"]["ram_nbytes"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("what", choices=["make", "render"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--kinds", nargs="+", default=list(KINDS))
    parser.add_argument("--results", type=Path)
    chosen, more = parser.parse_known_args()
    if chosen.what == "make":
        make(chosen.folder)
        return
    rows = []
    for kind in chosen.kinds:
        rows.append(render(chosen.folder, kind, more))
        sys.stdout.write(json.dumps(rows[-1]) + "\n")
        sys.stdout.flush()
    if chosen.results:
        keep(chosen.results, {"rows": rows})


if __name__ == "__main__":
    main()

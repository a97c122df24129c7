"""The networks of a render on the simulated GPU: each kind of weight, LoRAs, text, autoencoders."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from cfgen.checkpoint.lora.apply import apply_lora, open_lora
from cfgen.checkpoint.networks.fill import load_generator
from cfgen.config.loader import load
from cfgen.model.quantized import QuantizedLinear
from cfgen.model.tiled import CPU, SMALLEST, TiledDecoder
from cfgen.pipeline.cpu_offload import offload_blocks
from cfgen.pipeline.job import RenderJob
from tests.checkpoint import tiny
from tests.checkpoint.lora_files import PEFT, named, saved
from tests.model.test_wan_vae import GOLDEN, autoencoder
from tests.simulated.gpu import CONTEXT, SimulatedGpu, told
from tests.test_offload import LAYOUTS, rolled

CUDA = torch.device("cuda")
Write = Callable[[str], tiny.Tiny]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_kind_of_weight_computes_what_it_does_on_the_cpu(
    layout: str, tiny_file: Write, gpu: SimulatedGpu
) -> None:
    path = tiny_file(layout).path
    expected = rolled(load_generator(path), chunks=1)
    here, there = load_generator(path, device=CUDA), load_generator(path)
    rolled(here, chunks=1)  # tables are sent once
    gpu.counted()
    flows = rolled(here, chunks=1)
    assert "quant" not in told(gpu.counted()), "dequantizing waits for nothing"
    torch.testing.assert_close(flows, expected, rtol=1e-4, atol=1e-4)
    offload_blocks(there, CUDA)
    torch.testing.assert_close(rolled(there, chunks=1), flows, rtol=0, atol=0)


@pytest.mark.parametrize("layout", ["comfyquant_int8", "comfyquant_int8_convrot"])
def test_products_in_small_numbers_are_those_of_the_cpu(
    layout: str, tiny_file: Write, gpu: SimulatedGpu
) -> None:
    path = tiny_file(layout).path
    expected = rolled(load_generator(path, native=True), chunks=1)
    flows = rolled(load_generator(path, device=CUDA, native=True), chunks=1)
    # Activations in 8 bits: one that lies between two of them may fall either way.
    torch.testing.assert_close(flows, expected, rtol=5e-3, atol=5e-3)


@pytest.mark.parametrize("layout", ["native_bf16", "comfyquant_int8"])
def test_a_lora_goes_where_its_weights_are(
    layout: str, tiny_file: Write, gpu: SimulatedGpu, tmp_path: Path
) -> None:
    noise = torch.Generator().manual_seed(1)
    down, up = (torch.randn(shape, generator=noise) for shape in ((2, tiny.DIM), (tiny.DIM, 2)))
    pairs = {"blocks.0.self_attn.q": (down, up)}
    lora = open_lora(saved(named(pairs, lambda name: name, *PEFT), tmp_path))
    right, made = (load_generator(tiny_file(layout).path, device=at) for at in (CPU, CUDA))
    for generator in (right, made):
        apply_lora(generator, lora, 0.5)
    assert {p.device.type for p in (*made.parameters(), *made.buffers())} == {"cuda"}
    adapters = [m.adapters for m in made.modules() if isinstance(m, QuantizedLinear)]
    assert sum(adapters) == (layout != "native_bf16")
    expected = rolled(right, chunks=1)
    torch.testing.assert_close(rolled(made, chunks=1), expected, rtol=1e-4, atol=1e-4)


def test_a_prompt_is_encoded_as_on_the_cpu(tiny_model: Path, gpu: SimulatedGpu) -> None:
    job = RenderJob(load({"prompt": "a"}, assignments=[f"model.path={tiny_model}"]).config)
    encoder, prompts = job.model._encoder(), ["a red balloon drifts", "snow"]
    with torch.inference_mode():
        right = encoder(prompts)
        encoded = encoder.to(CUDA)(prompts)
    assert encoded.device.type == "cuda"
    torch.testing.assert_close(encoded.cpu(), right, rtol=1e-4, atol=1e-5)


@pytest.fixture(scope="module")
def golden() -> dict[str, Tensor]:
    return load_file(GOLDEN / "wan_vae_diffusers.safetensors")


def latents_of(golden: dict[str, Tensor]) -> Tensor:
    return golden["in/latents_norm"].transpose(1, 2)[:, :3]


def test_two_clips_stream_through_the_exact_autoencoder_by_turns(
    golden: dict[str, Tensor], gpu: SimulatedGpu
) -> None:
    vae, latents = autoencoder(golden), latents_of(golden)
    clips = [latents, latents.flip(1)]
    with torch.inference_mode():
        right = [vae.decode(clip) for clip in clips]
        vae.to(CUDA)
        states = [vae.start(), vae.start()]
        vae.decode(latents.to(CUDA))
        gpu.counted()
        parts = [
            [vae.decode(clip[:, i : i + 1].to(CUDA, non_blocking=True), state) for i in range(3)]
            for clip, state in zip(clips, states, strict=True)
        ]
        assert not gpu.counted()
    for made, expected in zip(parts, right, strict=True):
        torch.testing.assert_close(torch.cat(made, 1).cpu(), expected, rtol=1e-4, atol=1e-4)


def test_latents_are_encoded_as_on_the_cpu(golden: dict[str, Tensor], gpu: SimulatedGpu) -> None:
    vae, video = autoencoder(golden), torch.rand(1, 5, 3, 32, 32)
    with torch.inference_mode():
        right = vae.encode(video)
        latents = vae.to(CUDA).encode(video.to(CUDA))
    torch.testing.assert_close(latents.cpu(), right, rtol=1e-4, atol=1e-4)


def test_decoding_goes_on_in_tiles_and_on_the_cpu_when_the_gpus_memory_is_out(
    golden: dict[str, Tensor], gpu: SimulatedGpu
) -> None:
    vae, side = autoencoder(golden).to(CUDA), 2 * SMALLEST
    latents = torch.randn(1, 1, 16, side, side, generator=torch.Generator().manual_seed(0))
    modes = {}
    with torch.inference_mode():
        for name in ("whole", "tiles", "cpu"):
            decoder = TiledDecoder(vae)
            state, base = decoder.start(), gpu.allocated
            room = {"whole": 1 << 33, "tiles": modes.get("took", 0) // 2, "cpu": 20_000}[name]
            gpu.vram = CONTEXT + base + room
            gpu.forget_peak()
            video = decoder.decode(latents, state)
            modes.setdefault("took", gpu.peak - base)
            modes[name] = (state.mode.tile, state.mode.on_cpu)
            assert video.shape == (1, 1, 3, 8 * side, 8 * side)
            assert bool(torch.isfinite(video).all())
            del video, state, decoder
            gpu.vram = 80 << 30
    assert modes["whole"] == (None, False)
    assert modes["tiles"] == (SMALLEST, False)
    assert modes["cpu"][1], "the CPU is the last resort"

"""What a render will take of memory, told from headers: before a weight is read.

The figures for activations are counted from the sizes of the largest tensors that live together;
those of a CPU are calibrated with `python tests/bench/full_size.py render`.
"""

from __future__ import annotations

import math

import torch

from cfgen.checkpoint.formats.open import open_container
from cfgen.checkpoint.networks.fill import MATRICES, config_of, held_nbytes
from cfgen.checkpoint.networks.geometry import vae_stride
from cfgen.checkpoint.networks.network import Network
from cfgen.checkpoint.networks.vae import tiny_sizes
from cfgen.config.schema import MemoryConfig, ModelConfig, RenderConfig
from cfgen.errors import BudgetError, CheckpointError, SetupError, UsageError
from cfgen.memory.page_pool import page_dtypes
from cfgen.memory.page_sizes import PageClass, tokens_of
from cfgen.memory.policy import Storage, page_classes, read_tokens
from cfgen.model.generator import WanConfig
from cfgen.model.latent_moments import LATENT_MEAN
from cfgen.model.patches import embedding_name
from cfgen.model.vae import SPATIAL_STRIDE
from cfgen.ops.select import build_ops
from cfgen.ops.triton_backend import Request
from cfgen.parallel.launch import require_divisible, require_one_page_size
from cfgen.pipeline.device import Runtime
from cfgen.pipeline.job import RenderJob
from cfgen.pipeline.limits import free_memory
from cfgen.pipeline.models import OpenedModel
from cfgen.pipeline.offload_plan import (
    CUDA_CONTEXT,
    PROGRAM,
    MemoryEstimate,
    Placement,
    choose,
    table,
)
from cfgen.pipeline.shots import longest_pass
from cfgen.timeline import Plan

DECODED = {torch.bfloat16: 24_000, torch.float32: 38_000}
"""Bytes a pixel of a frame that the Wan VAE takes to decode a chunk, its caches included (measured
at 128x128 to 256x256 on a CPU, torch 2.13)."""

DIFFUSERS = {torch.bfloat16: 130_000_000, torch.float32: 240_000_000}
"""Resident memory of diffusers itself, which the Wan VAE comes from, and of what is left of turning
its weights into their number type."""

BESIDE = 0.65
"""Time of the autoencoder and all else beside the generator's linear layers, as a share of theirs
(mini on a CPU: each latent frame in the cache adds 2 % of the time of a chunk without any)."""

TINY_MAPS = 5
"""Feature maps of its widest stage that a tiny autoencoder holds at once, for every frame."""


def attention_share(sizes: WanConfig, grid: tuple[int, int]) -> float:
    """What a latent frame in the cache adds to the time of a chunk, as a share of that without any.

    Counted in multiplications of a token in a layer, as if all were as fast; what is beside the
    generator counts as `BESIDE` of its linear layers, which gives what was measured with mini.
    """
    linear = 6 * sizes.dim**2 + 2 * sizes.dim * sizes.ffn_dim + 2 * sizes.text_len * sizes.dim
    return 2 * grid[0] * grid[1] * sizes.dim / (linear * (1 + BESIDE))


def kv_nbytes(sizes: WanConfig, tokens: int, dtype: torch.dtype) -> int:
    """Bytes of keys and values of so many tokens, in a number type."""
    return 2 * sizes.num_layers * tokens * sizes.dim * dtype.itemsize


def pool_nbytes(
    storage: Storage,
    sizes: WanConfig,
    grid: tuple[int, int],
    classes: tuple[PageClass, ...],
    dtype: torch.dtype,
) -> int:
    """Bytes of a KV cache as it is kept, scales and means included."""
    kept, pages = page_dtypes(storage, dtype), sum(each.pages for each in classes)
    numbers = sum(kv_nbytes(sizes, tokens_of(classes, grid), each) for each in kept) // 2
    keys, values = (each.itemsize == 1 for each in kept)
    beside = keys * (sizes.num_heads + sizes.dim) + values * sizes.dim
    return numbers + sizes.num_layers * pages * beside * torch.float32.itemsize


def wanted_of(config: RenderConfig, runtime: Runtime, sizes: WanConfig) -> Request:
    """What a render asks of a backend."""
    keys, values = page_dtypes(config.memory.kv_cache, runtime.dtype)
    return Request(runtime.device, runtime.dtype, sizes.head_dim, keys, values)


def estimate_memory(job: RenderJob) -> MemoryEstimate:
    """What each part of a render takes, of the first process if there are several.

    Raises:
        CheckpointError: A file is nowhere, damaged or not what it should be.
        UsageError: Heads or pages cannot be shared out among so many processes.
    """
    config, plan, model, dtype = job.config, job.plan, job.model, job.runtime.dtype
    network, sizes = model.generator, model.geometry
    geometry = plan.geometry
    grid = sizes.grid(geometry.latent_height, geometry.latent_width)
    _require_same_latents(network, sizes, plan)
    _require_patches(sizes, plan)
    processes = config.placement.parallel
    require_divisible(sizes.num_heads, processes)
    _require_larger_patches(network, sizes, config.memory)
    chunk, most = geometry.chunk_latent_frames, longest_pass(plan, config.memory.recaches)
    classes = page_classes(config.memory, plan.latent_frames, chunk)
    require_one_page_size(len(classes), processes)
    sets = [network] if network.memory is None else [network, network.memory]
    weights = [item for each in sets for item in _generator(each, config.model, dtype).items()]
    blocks = [nbytes for name, nbytes in weights if MATRICES.fullmatch(name)]
    prompt = kv_nbytes(sizes, sizes.text_len, dtype)
    text, widest = _text_encoder(model.text_encoder)
    vae, decode = _vae(model.vae, dtype, plan)
    full = kv_nbytes(sizes, tokens_of(classes, grid), dtype)
    kv = pool_nbytes(config.memory.kv_cache, sizes, grid, classes, dtype)
    rotates = build_ops(config.backend, wanted_of(config, job.runtime, sizes)).pages is None
    read = read_tokens(config.memory, plan.latent_frames, most, grid)
    held = kv_nbytes(sizes, read, dtype)
    held = held if kv == full else held // sizes.num_layers
    prompts = len({span.prompt for span in plan.spans}) + (config.schedule.guidance != 1)
    return MemoryEstimate(
        blocks=sum(blocks),
        largest=max(blocks),
        rest=sum(nbytes for _, nbytes in weights) - sum(blocks),
        kv=kv // processes,
        context=held // processes if rotates else 0,
        layers=sizes.num_layers,
        conditioning=prompts * len(sets) * prompt,
        forward=_forward(sizes, -(-grid[0] * grid[1] * most // processes), dtype),
        vae=vae,
        decode=decode,
        text=text,
        encode=4 * widest,
        adapters=_adapters(model, dtype),
    )


def _require_same_latents(network: Network, sizes: WanConfig, plan: Plan) -> None:
    """Refuse an autoencoder whose latents are not those that the generator makes.

    The stride of a generator's latents is that in its config.json; Wan2.1's is known without.

    Raises:
        CheckpointError: Their channels differ, or the pixels along a cell.
    """
    g = plan.geometry
    if sizes.in_dim != g.channels:
        raise CheckpointError(
            f"the generator makes latents of {sizes.in_dim} channels, and the autoencoder reads "
            f"{g.channels}",
            "use files that belong together",
        )
    stride = vae_stride(config_of(network.file.path))
    if stride is None and sizes.in_dim == len(LATENT_MEAN):
        stride = SPATIAL_STRIDE
    if stride is not None and stride != g.spatial_stride:
        raise CheckpointError(
            f"a cell of the generator's latents is {stride} pixels wide, and one of the "
            f"autoencoder's {g.spatial_stride}",
            "use files that belong together",
        )


def _require_patches(sizes: WanConfig, plan: Plan) -> None:
    """Refuse frames that the generator cannot cut into whole patches.

    Raises:
        UsageError: They are not.
    """
    g = plan.geometry
    _, rows, columns = sizes.patch_size
    if g.latent_height % rows or g.latent_width % columns:
        raise UsageError(
            f"the size {g.width}x{g.height} cannot be rendered: this model's frames must be a "
            f"multiple of {columns * g.spatial_stride} pixels wide and of "
            f"{rows * g.spatial_stride} high",
            "choose another --size (or model.sizes)",
        )


def _require_larger_patches(network: Network, sizes: WanConfig, memory: MemoryConfig) -> None:
    """Refuse a memory of patches that the generator has no kernels for.

    Raises:
        CheckpointError: It has none.
    """
    missing = [times for times in memory.patches if times not in sizes.larger_patches]
    if missing:
        raise CheckpointError(
            f"{network.file.path} cannot be run with memory {memory.policy}, which keeps the past "
            f"with larger patches: {embedding_name(missing[0])}.weight is missing",
            "choose another --memory, or a model with such patches: mini-base has them",
        )


def place(job: RenderJob, *, held: int = 0) -> Placement:
    """Where the weights of a render wait.

    Args:
        job: The render.
        held: Bytes of weights of the render before, which go or are used again.

    Raises:
        BudgetError: It does not fit.
        SetupError: There is no GPU that weights could wait for.
    """
    device, asked = job.runtime.device, job.config.placement
    if device.type == "cuda":
        # Who asks has a context already, which the estimates count as well.
        free = torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)
        free += CUDA_CONTEXT
        budget = free if asked.vram is None else min(asked.vram, free)
        sizes = estimate_memory(job)
        chosen = choose(sizes, asked=asked.offload, budget=budget)
        _require_main_memory(sizes.ram_beside_gpu(chosen.offload), sizes, held)
        return chosen
    if asked.vram is not None or asked.offload in ("blocks", "all"):
        raise SetupError(
            "--vram and --offload are for GPUs, and this render is on the CPU, where nothing is "
            "to be gained by them",
            "leave them out; `cfgen plan` tells how much memory the render takes",
        )
    sizes = estimate_memory(job)
    most = sizes.ram_on_cpu * job.config.placement.parallel
    _require_main_memory(most, sizes, held)
    return Placement("none", f"about {most / 1e9:.1f} GB of memory at most")


def check(job: RenderJob) -> None:
    """Look at everything that a render needs of its model, without reading weights.

    Raises:
        CfgenError: Something stands in the way of it.
    """
    place(job)
    _ = job.model.text_files, job.model.loras  # which opens them


def _require_main_memory(needed: int, sizes: MemoryEstimate, held: int) -> None:
    """Refuse a render that main memory is too small for, while nothing is lost by it."""
    free = free_memory() + held
    if needed - PROGRAM <= free:
        return
    part, most = max(table(sizes).items(), key=lambda item: item[1])
    raise BudgetError(
        f"the render takes about {needed / 1e9:.1f} GB of memory and {free / 1e9:.1f} GB are "
        f"free; most of it is for {part.replace('_', ' ')}, {most / 1e9:.1f} GB",
        "choose --memory slow_fast or window, whose cache does not grow with the clip, a "
        "smaller --size, or smaller weights (cfgen quantize)",
    )


def _generator(network: Network, model: ModelConfig, dtype: torch.dtype) -> dict[str, int]:
    """Bytes of the generator's weights as they are held, by name."""
    precise = torch.promote_types(dtype, torch.float32)
    return held_nbytes(
        network,
        dtype_of=lambda name: dtype if MATRICES.fullmatch(name) else precise,
        expand=model.quantized == "expand",
    )


def _adapters(model: OpenedModel, dtype: torch.dtype) -> int:
    """Bytes of the LoRAs that cannot be merged, because the weights stay quantized."""
    quantized = any(layer.is_quantized for layer in model.generator.layers.values())
    if model.config.quantized == "expand" or not quantized:
        return 0
    files = [open_container(lora.path) for lora in model.lora_files]
    shapes = [entry.shape for file in files for entry in file.entries.values()]
    sets = 1 if model.generator.memory is None else 2
    return sets * sum(math.prod(shape) for shape in shapes) * dtype.itemsize


def _forward(sizes: WanConfig, here: int, dtype: torch.dtype) -> int:
    """Activations of the stage of a block that holds most, for so many tokens."""
    stream = 4 * here * sizes.dim * 4
    attention = 6 * here * sizes.dim * 4
    inner = 2 * here * sizes.ffn_dim * dtype.itemsize
    weight = sizes.dim * sizes.ffn_dim * dtype.itemsize
    return stream + max(attention, inner) + weight


def _text_encoder(network: Network) -> tuple[int, int]:
    """Bytes of the text encoder as it is held, and of its largest matrix in float32."""
    held = held_nbytes(network, dtype_of=lambda _name: torch.bfloat16, expand=False)
    tables = [math.prod(s) for n, s in network.shapes.items() if "block" in n]
    return sum(held.values()), 4 * max(tables, default=0)


def _vae(network: Network, dtype: torch.dtype, plan: Plan) -> tuple[int, int]:
    """Bytes of the autoencoder's weights, and the most that decoding a chunk takes."""
    pixels = plan.geometry.width * plan.geometry.height
    weights = sum(math.prod(shape) for shape in network.shapes.values()) * dtype.itemsize
    if "decoder.22.bias" in network.shapes:
        width = network.shapes["decoder.22.weight"][1]
        frames = 4 * plan.geometry.chunk_latent_frames
        points = pixels // tiny_sizes(network)[1] ** 2
        return weights, TINY_MAPS * frames * width * points * dtype.itemsize
    share = network.shapes["decoder.conv_out.weight"][1] / 96
    return weights + DIFFUSERS[dtype], round(DECODED[dtype] * share * pixels)

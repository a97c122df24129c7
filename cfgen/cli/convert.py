"""`cfgen convert`: a model in another layout."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from cfgen.cli import conversion_options, options

app = options.command_app()


@app.command()
@options.takes(options.Yes, options.Json, options.Quiet, options.Debug)
def convert(
    ctx: typer.Context,
    source: conversion_options.Source,
    target: conversion_options.Target,
    to: Annotated[
        Literal["wan", "diffusers"] | None,
        typer.Option("--to", help="Whose names a generator's tensors get.  [default: wan]"),
    ] = None,
    dtype: Annotated[
        conversion_options.Dtype | None,
        typer.Option(
            "--dtype",
            help="Dequantize, and store everything in this number type.  [default: as it is]",
        ),
    ] = None,
    weights: conversion_options.Which = None,
    *,
    yes: bool,
) -> None:
    """Write a model as one clean safetensors file.

    It takes any generator or text encoder that cfgen reads: GGUF, training
    states (.pt), shards, prefixes, diffusers' names, quantized files. Values
    stay the same, bit by bit: plain tensors keep their dtype, and quantized
    layers stay quantized, in ComfyUI's native layout. Layers that this layout
    cannot store (GGUF's blocks, musubi's scales) need --dtype.

    A text encoder gets Hugging Face's names. A model with other heads than
    Wan's published ones needs its config.json; cfgen puts it beside DST.

    \b
    Examples:
      cfgen convert self_forcing_dmd.pt self_forcing.safetensors
      cfgen convert wan-q4_k_m.gguf wan.safetensors --dtype bf16
      cfgen convert wan.safetensors \\
        diffusion_pytorch_model.safetensors --to diffusers
    """
    from cfgen.checkpoint.convert.convert import plan_convert
    from cfgen.checkpoint.convert.input import open_source
    from cfgen.checkpoint.convert.output import check

    console = options.console_of(ctx)
    found = open_source(source, weights=weights and conversion_options.WEIGHTS[weights])
    rewrite = plan_convert(found, to=to, dtype=conversion_options.dtype_of(dtype))
    check(found, target, nbytes=rewrite.nbytes, overwrite=yes)
    if to == "diffusers" and rewrite.formats:
        console.warn(
            "diffusers reads no quantized layers in this layout; cfgen does",
            "add --dtype bf16 for a file that diffusers reads",
        )
    console.result(str(target), conversion_options.write(console, rewrite, target))

"""`cfgen doctor`: what this machine has, what that means for a render, and what to do about it."""

from __future__ import annotations

import platform
import shutil
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

import typer

from cfgen import __version__
from cfgen.cli import options
from cfgen.config.loader import load
from cfgen.config.presets import is_installed, preset_names
from cfgen.errors import CfgenError
from cfgen.pipeline.limits import usable_cores
from cfgen.units import bytes_words, count
from cfgen.video.codecs import LOSSLESS, Codec
from cfgen.video.ffmpeg import Ffmpeg

_LOW_DISK_NBYTES = 1_000_000_000

app = options.command_app()


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """What was found out about one part of the machine.

    Attributes:
        part: The part.
        state: `ok`; `note`: works, but could be better; `bad`: renders will be refused.
        found: What is there.
        meaning: What that means for a render, or empty.
        advice: What to do, or empty.
    """

    part: str
    state: Literal["ok", "note", "bad"]
    found: str
    meaning: str = ""
    advice: str = ""


@app.command()
@options.takes(options.Json, options.Debug)
def doctor(ctx: typer.Context) -> None:
    """Tell whether this machine can render, and what to do if not.

    It looks at Python, torch, threads, Triton, GPU, ffmpeg, what it can encode, models and disk.
    For each it says what is there, what that means and what to do. The exit code is 0 if a render
    can run here, and 3 if something is missing.
    """
    console = options.console_of(ctx)
    findings = [finding for look in _LOOKS for finding in look()]
    bad = [finding.part for finding in findings if finding.state == "bad"]
    verdict = f"not ready: see {', '.join(bad)}" if bad else "ready to render"
    lines = [line for finding in findings for line in _lines(finding)]
    console.result(
        "\n".join([*lines, verdict]),
        {"ready": not bad, "findings": [asdict(finding) for finding in findings]},
    )
    if bad:
        raise typer.Exit(3)


def _lines(finding: Finding) -> Iterator[str]:
    yield f"{finding.state:5} {finding.part:8} {finding.found}"
    if finding.meaning:
        yield f"{'':15}{finding.meaning}"
    if finding.advice:
        yield f"{'':15}-> {finding.advice}"


def _python() -> Iterator[Finding]:
    found = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    yield Finding(part="python", state="ok", found=f"{found}, cfgen {__version__}")


def _torch() -> Iterator[Finding]:
    try:
        import torch
    except (ImportError, OSError) as error:
        yield Finding(
            part="torch",
            state="bad",
            found=f"cannot be imported: {error}",
            meaning="nothing can be rendered without it",
            advice="pip install 'torch>=2.11,<2.14'",
        )
        return
    yield Finding(part="torch", state="ok", found=str(torch.__version__))
    cores = usable_cores()
    threads = torch.get_num_threads()
    yield Finding(
        part="threads",
        state="ok" if threads == cores else "note",
        found=f"{threads} of {cores} usable cores",
        meaning="" if threads == cores else "a render chooses its own number unless told otherwise",
        advice="" if threads == cores else "choose with --set threads=N; it is part of the result",
    )
    built: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    fast = built and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    yield Finding(
        part="bf16",
        state="ok" if fast else "note",
        found=f"CPU with {torch.backends.cpu.get_cpu_capability()}, bfloat16 "
        + ("supported" if fast else "not supported"),
        meaning="" if fast else "rendering on this CPU works, but more slowly",
    )
    yield _gpu()


def _gpu() -> Finding:
    import torch

    if not torch.cuda.is_available():
        return Finding(
            part="gpu",
            state="ok",
            found="none that torch can use",
            meaning="renders run on the CPU; the preset mini is made for that",
        )
    device = torch.cuda.get_device_properties(0)
    total = bytes_words(device.total_memory)
    return Finding(
        part="gpu", state="ok", found=f"{torch.cuda.device_count()} x {device.name}, {total}"
    )


def _triton() -> Iterator[Finding]:
    try:
        found = version("triton")
    except PackageNotFoundError:
        found = "not installed"
    import torch

    from cfgen.kernels.device import unsupported_device

    reason = unsupported_device(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    yield Finding(
        part="triton",
        state="ok",
        found=found,
        meaning=f"{reason} PyTorch computes instead." if reason else "its kernels run on the GPU",
    )


def _ffmpeg() -> Iterator[Finding]:
    from cfgen.video.ffmpeg import find_ffmpeg, require_encoder
    from cfgen.video.ffmpeg_graph import graph_module
    from cfgen.video.formats import MP4

    encoder = MP4.codec.encoder
    try:
        graph_module()
        ffmpeg = find_ffmpeg(encoder)
        require_encoder(ffmpeg, encoder)
    except CfgenError as error:
        yield Finding(
            part="ffmpeg",
            state="bad",
            found=str(error),
            meaning="no video can be written",
            advice=error.hint or "",
        )
        return
    yield Finding(
        part="ffmpeg",
        state="ok",
        found=f"{ffmpeg.version}, with {encoder}",
        meaning=ffmpeg.note or f"taken from {ffmpeg.path}",
    )
    yield from _formats(ffmpeg)


def _formats(ffmpeg: Ffmpeg) -> Iterator[Finding]:
    """What video files can be written, and what the ffmpeg at hand lacks for others."""
    from cfgen.video.formats import FORMATS

    codecs = {codec.key: codec for made in FORMATS.values() for codec in made.codecs}
    lacking = {key: each.encoder for key, each in codecs.items() if not _encodes(ffmpeg, each)}
    rows = {
        made.ending.removeprefix("."): [key for key in made.codec_keys if key not in lacking]
        for made in FORMATS.values()
    }
    found = "; ".join(f"{name}: {', '.join(keys)}" for name, keys in rows.items() if keys)
    missing = ", ".join(f"{key} ({encoder})" for key, encoder in lacking.items())
    yield Finding(
        part="formats",
        state="note" if lacking else "ok",
        found=found,
        meaning=f"cannot be encoded here: {missing}" if lacking else "",
        advice="`pip install imageio-ffmpeg`, whose ffmpeg has them all, or set CFGEN_FFMPEG to "
        "another ffmpeg"
        if lacking
        else "",
    )


def _encodes(ffmpeg: Ffmpeg, codec: Codec) -> bool:
    needed = {codec.encoder, codec.encoder if codec.exact_joins else LOSSLESS.encoder}
    return needed <= ffmpeg.encoders


def _settings() -> Iterator[Finding]:
    try:
        load({})
    except CfgenError as error:
        yield Finding(
            part="settings",
            state="bad",
            found=str(error).splitlines()[0] if str(error) else "cannot be read",
            meaning="every render is refused",
            advice=error.hint or "mend the configuration file, or unset the variable",
        )


def _models() -> Iterator[Finding]:
    from cfgen.pipeline.models import OpenedModel

    absent: list[str] = []
    for name in preset_names():
        model = load({"preset": name}, environ={}).config.model
        try:
            files = OpenedModel(model).files
        except CfgenError as error:
            if not is_installed(model.path):
                absent.append(name)
            elif name == model.path:  # others that go on from it need not tell it again
                yield Finding(part="model", state="bad", found=f"{name} is damaged: {error}")
            continue
        parts = [files.generator, files.vae, files.text_encoder]
        nbytes = sum(_nbytes(part) for part in parts)
        yield Finding(part="model", state="ok", found=f"{name}, {bytes_words(nbytes)}")
    if absent:
        yield Finding(
            part="model",
            state="ok",
            found=f"weights of {count(len(absent), 'other preset')} are not on this machine",
            meaning=", ".join(absent),
            advice="`cfgen models pull NAME` fetches all that a preset needs",
        )


def _nbytes(place: Path) -> int:
    files = [place] if place.is_file() else [path for path in place.rglob("*") if path.is_file()]
    return sum(file.stat().st_size for file in files)


def _disk() -> Iterator[Finding]:
    here = Path.cwd()
    free = shutil.disk_usage(here).free
    low = free < _LOW_DISK_NBYTES
    yield Finding(
        part="disk",
        state="note" if low else "ok",
        found=f"{bytes_words(free)} free in {here}",
        meaning="enough for short clips only" if low else "",
        advice="`cfgen plan` tells what a render needs" if low else "",
    )


_LOOKS: tuple[Callable[[], Iterator[Finding]], ...] = (
    _python,
    _torch,
    _triton,
    _ffmpeg,
    _settings,
    _models,
    _disk,
)

"""`cfgen bench`: how fast a preset renders on this machine, by backend and KV cache."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar, get_args, get_type_hints

import typer

from cfgen.cli import completion, options
from cfgen.cli.columns import labelled
from cfgen.cli.command import SPEED
from cfgen.config.loader import Resolved, load
from cfgen.config.schema import RenderConfig
from cfgen.config.values import nearest, size_text
from cfgen.errors import UsageError
from cfgen.hub import parse_reference
from cfgen.memory.policy import Storage
from cfgen.plain_text import aligned
from cfgen.units import bytes_words, count

if TYPE_CHECKING:
    from cfgen.bench.measure import Figures, Report
    from cfgen.bench.variants import BenchSetup, Variant

Name = TypeVar("Name", bound=str)

BACKENDS: tuple[str, ...] = get_args(get_type_hints(RenderConfig)["backend"])

_STEADY = 5
_FILES = ("path", "loras", "vae", "text_encoder", "tokenizer")
_SHORT = {"float32": "fp32", "bfloat16": "bf16"}

Backends = Annotated[
    list[str] | None,
    options.option(
        "--backend",
        "NAME",
        SPEED,
        "The backend to measure: auto, torch, triton or reference (slow); may be "
        "repeated.  [default: torch and triton]",
        autocompletion=completion.values_of("backend"),
    ),
]
Storages = Annotated[
    list[str] | None,
    options.option(
        "--kv-cache",
        "HOW",
        SPEED,
        "How the KV cache is stored: auto, bf16, int8 or fp8; may be repeated.  "
        "[default: each that differs]",
        autocompletion=completion.values_of("memory.kv_cache"),
    ),
]
Dtype = Annotated[
    str | None,
    options.option(
        "--dtype",
        "TYPE",
        SPEED,
        "What to compute in: float32, bfloat16 or auto.  [default: auto; key: dtype]",
        autocompletion=completion.values_of("dtype"),
    ),
]
Seconds = Annotated[
    float,
    options.option(
        "--seconds",
        "S",
        SPEED,
        "How many seconds to make chunks after the warm-up; each way makes at least one.",
        min=0,
        max=86400,
    ),
]
_BENCHED = (options.Preset, options.Size, options.Set, options.Config)

app = options.command_app()


@app.command()
@options.takes(*_BENCHED, options.Json, options.Quiet, options.Debug)
def bench(
    ctx: typer.Context,
    backends: Backends = None,
    storages: Storages = None,
    dtype: Dtype = None,
    seconds: Seconds = 20,
    *,
    preset: str | None,
    size: str | None,
    set: list[str] | None,
    config: Path | None,
) -> None:
    """Measure how fast a preset renders here, by backend and KV cache.

    cfgen makes chunks with a full memory, as late in a long clip, with every
    backend that can run here and every way to store the KV cache. It says why
    others cannot run. It compares a speed with that of the torch backend only
    if both make the same chunk. Random weights of the same size replace a model
    that is not on this machine. Nothing is written to disk.

    \b
    s/chunk   seconds to denoise and commit a chunk
    frames/s  frames per second; decoded: including their decoding
    cache     the KV cache, and what else the backend holds of it

    \b
    Examples:
      cfgen bench
      cfgen bench --preset self-forcing --kv-cache auto --kv-cache int8
      cfgen bench --backend torch --backend reference --dtype float32
    """
    console = options.console_of(ctx)
    given = {"preset": preset, "size": size, "dtype": dtype}
    resolved = load(given, assignments=set or (), run_file=config)
    ways = _ways(resolved.config, backends, storages)
    from cfgen.bench.measure import Bench
    from cfgen.bench.variants import prepare

    console.note(f"loading {resolved.config.preset}")
    setting = prepare(resolved.config, may_stand_in=_is_published(resolved))
    if setting.absent:
        console.note("it is not on this machine; random weights of its size replace it")
    work = Bench(setting, ways)
    for words in work.prepare():
        console.note(words)
    console.note(f"making chunks by turns for {seconds:g} s, one each at least")
    for words in work.run(seconds):
        console.note(words)
    report = work.report()
    console.result("\n".join(lines_on(setting, report)), facts_on(setting, report))


def _is_published(resolved: Resolved) -> bool:
    """Whether all files of the model are those that a preset names on the hub."""
    own = [origin for key, origin in resolved.origins.items() if key in _keys()]
    named = any(origin.kind not in ("default", "preset") for origin in own)
    return not named and parse_reference(resolved.config.model.path) is not None


def _keys() -> set[str]:
    return {f"model.{name}" for name in _FILES}


def _ways(
    config: RenderConfig, backends: Sequence[str] | None, storages: Sequence[str] | None
) -> list[Variant]:
    """What to measure: what was asked for, else all that a render would choose among.

    Raises:
        UsageError: There is no such backend, or no such KV cache.
    """
    from cfgen.bench.variants import Variant

    usual = ["torch", "triton"] if config.backend == "auto" else [config.backend]
    own = config.memory.kv_cache
    kept = sorted(get_args(Storage), key=lambda storage: storage != own)
    return [
        Variant(_one_of(BACKENDS, backend, "--backend"), _one_of(kept, storage, "--kv-cache"))
        for backend in backends or usual
        for storage in storages or kept
    ]


def _one_of(allowed: Sequence[Name], given: str, flag: str) -> Name:
    for name in allowed:
        if name == given:
            return name
    raise UsageError(
        f"{flag} must be one of {', '.join(allowed)}, got {given!r}{nearest(given, allowed)}"
    )


def lines_on(setting: BenchSetup, report: Report) -> Iterator[str]:
    """The report for people."""
    yield from _about(setting, report)
    yield ""
    yield from _table(report)
    yield ""
    yield from _closing(report)


def _about(setting: BenchSetup, report: Report) -> Iterator[str]:
    """What was measured, where and how."""
    import torch

    from cfgen.pipeline.fingerprint import processor

    config = setting.config
    yield from labelled(
        "preset",
        f"{config.preset}, {size_text(config.frame_size)}; a chunk is "
        f"{count(report.frames, 'frame')} in {setting.passes} passes",
    )
    device = setting.generator.device
    threads = "" if device.type == "cuda" else f", {count(torch.get_num_threads(), 'thread')}"
    compiled = ", compiled" if config.compile else ""
    yield from labelled(
        "machine",
        f"{processor(device)}{threads}, torch {torch.__version__}, {_dtype(setting)}{compiled}",
    )
    if setting.absent:
        yield from labelled("weights", f"random ones of its size: {setting.absent}")
        yield from labelled("", f"-> `cfgen models pull {config.preset}` fetches the model")
    yield from labelled(
        "memory",
        f"{config.memory.policy}, late in a clip: {count(report.slots, 'latent frame')} of "
        f"{count(setting.tokens, 'token')}",
    )
    made = len(report.ways[0].seconds)
    few = "; more --seconds are steadier" if made < _STEADY else ""
    beside = ", beside the next" if report.ways[0].beside_s else ""
    yield from labelled(
        "timed",
        f"median of {count(made, 'chunk')} each, by turns{few}; decoding one takes "
        f"{report.decode_s:.3g} s{beside}",
    )


def _dtype(setting: BenchSetup) -> str:
    return str(setting.dtype).removeprefix("torch.")


def _table(report: Report) -> Iterator[str]:
    """A row for each way; what it takes of a GPU only where there is one."""
    on_gpu = any(figures.gpu_nbytes is not None for figures in report.ways)
    head = ["backend", "KV cache", "s/chunk", "frames/s", "decoded", "cache"]
    rows = [[*head, *(["GPU"] if on_gpu else []), "vs torch"]]
    for figures in report.ways:
        ratio = report.ratio(figures)
        unlike = "-" if figures.error is None else "differs"
        rows.append(
            [
                figures.way.backend,
                _kept(figures),
                f"{figures.chunk_s:.3f}",
                f"{report.frames_per_s(figures):.1f}",
                f"{report.frames_per_s(figures, decoded=True):.1f}",
                bytes_words(figures.cache_nbytes),
                *([bytes_words(figures.gpu_nbytes or 0)] if on_gpu else []),
                unlike if ratio is None else f"{ratio:.2f}x",
            ]
        )
    yield from aligned(rows, right=range(2, len(rows[0])))


def _kept(figures: Figures) -> str:
    """How the KV cache is kept, and in what where the name does not say it."""
    storage = figures.way.storage
    return f"auto: {_SHORT.get(figures.keys, figures.keys)}" if storage == "auto" else storage


def _closing(report: Report) -> Iterator[str]:
    """Why a speed or a way is left out, and what to conclude."""
    base = report.base
    if base is not None and len(report.ways) > 1:
        yield from labelled("1.00x", f"is {base.way.backend} with the KV cache {_kept(base)}")
    for figures in report.ways:
        if base is not None and figures.error is not None and not figures.agrees:
            yield from labelled(
                "differs",
                f"{figures.way}: its chunk is {figures.error:.1%} away from that of {base.way}, "
                f"and may be {figures.tolerance:.1%}: their speeds are not compared",
            )
    reasons: dict[tuple[str, str], list[str]] = {}
    for refused in report.refused:
        reasons.setdefault((refused.way.backend, refused.reason), []).append(refused.way.storage)
    measured = {figures.way.backend for figures in report.ways}
    for (backend, reason), storages in reasons.items():
        one = len({key for key in reasons if key[0] == backend}) == 1 and backend not in measured
        yield from labelled(backend, reason if one else f"with {', '.join(storages)}: {reason}")
    yield from labelled(
        "auto", f"--backend auto, the default of a render, takes {report.auto} here"
    )


def facts_on(setting: BenchSetup, report: Report) -> dict[str, object]:
    """The same for programs."""
    import torch

    from cfgen.pipeline.fingerprint import processor, versions

    config = setting.config
    return {
        "preset": config.preset,
        "size": list(config.frame_size),
        "machine": {
            "device": processor(setting.generator.device),
            "threads": torch.get_num_threads(),
            **versions(),
        },
        "dtype": _dtype(setting),
        "compiled": config.compile,
        "random_weights": setting.absent is not None,
        "chunk": {"frames": report.frames, "passes": setting.passes, "tokens": setting.tokens},
        "memory": {"policy": config.memory.policy, "latent_frames": report.slots},
        "decode_s": report.decode_s,
        "auto": report.auto,
        "compared_with": None if report.base is None else _named(report.base.way),
        "ways": [_way(report, figures) for figures in report.ways],
        "refused": [{**_named(each.way), "reason": each.reason} for each in report.refused],
    }


def _named(way: Variant) -> dict[str, object]:
    return {"backend": way.backend, "kv_cache": way.storage}


def _way(report: Report, figures: Figures) -> dict[str, object]:
    return {
        **_named(figures.way),
        "keys": figures.keys,
        "values": figures.values,
        "chunks": len(figures.seconds),
        "chunk_s": figures.chunk_s,
        "slowest_s": max(figures.seconds),
        "fastest_s": min(figures.seconds),
        "frames_per_s": report.frames_per_s(figures),
        "frames_per_s_decoded": report.frames_per_s(figures, decoded=True),
        "cache_nbytes": figures.cache_nbytes,
        "gpu_nbytes": figures.gpu_nbytes,
        "error": figures.error,
        "tolerance": figures.tolerance,
        "ratio": report.ratio(figures),
    }

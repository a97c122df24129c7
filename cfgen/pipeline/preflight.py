"""Before a render begins: what cannot be is refused; licences, limits, unknown words are told."""

from __future__ import annotations

import re
import shutil

from cfgen.checkpoint.formats.base import read_json
from cfgen.config.presets import locate_model
from cfgen.config.schema import RenderConfig
from cfgen.errors import BudgetError, CheckpointError
from cfgen.files.writing import disk_errors
from cfgen.pipeline.job import RenderJob
from cfgen.pipeline.plan import estimate_of
from cfgen.renderer.events import Warned
from cfgen.runs.contents import require_own
from cfgen.units import bytes_words
from cfgen.video.encoding import Encoding, exact_fps, require_encoders
from cfgen.video.ffmpeg import find_ffmpeg
from cfgen.video.ffmpeg_graph import graph_module
from cfgen.video.output import check_output, format_of, refuse_existing, run_of

SPARE_DISK_NBYTES = 16_000_000
"""Bytes of disk that must be left over."""

_WORD = re.compile(r"[^\W\d_]+")
_WORDS_NAMED = 8
_LONGEST = 120
"""Letters of a prompt that are told again."""


def licence_of(config: RenderConfig) -> tuple[str, ...]:
    """What the licence of a model does not allow, a line."""
    return (f"licence: {config.model.licence}",) if config.model.licence else ()


def too_long(config: RenderConfig) -> tuple[Warned, ...]:
    """A warning if a clip is longer than its model was trained to keep up."""
    longest = config.model.longest_s
    if longest is None or config.duration_s <= longest:
        return ()
    return (
        Warned(
            message=f"{config.preset} was trained on clips of {longest:g} s; pictures may drift or "
            f"freeze in the {config.duration_s:g} s that are asked for",
            hint="sgf, longlive, infinity-rope and context-forcing are made for minutes",
        ),
    )


def unknown_words(config: RenderConfig) -> tuple[Warned, ...]:
    """A warning if a model tells which words it knows and the prompt has others."""
    model = locate_model(config.model.path)
    path = (model if model.is_dir() else model.parent) / "mini.json"
    if not path.is_file():
        return ()
    facts = read_json(path)
    known, knows = facts.get("words"), facts.get("knows")
    if isinstance(knows, str):
        knows = {"knows": knows}
    if not isinstance(known, list) or not isinstance(knows, dict):
        raise CheckpointError(
            f"{path} must tell the model's words (a list) and what it knows (lists by name)",
            "restore the model folder",
        )
    strange = list(dict.fromkeys(w for w in _WORD.findall(config.prompt.lower()) if w not in known))
    if not strange:
        return ()
    named = ", ".join(map(repr, strange[:_WORDS_NAMED]))
    more = len(strange) - _WORDS_NAMED
    width = max(map(len, knows), default=0)
    rows = (f"  {name:{width}}  {text}" for name, text in knows.items())
    return (
        Warned(
            message=f"the model has never seen {named}{f' and {more} more' if more > 0 else ''} "
            "and may ignore it",
            hint="\n".join(
                [f"understood as: {_understood(config.prompt, set(strange))}", "it knows:", *rows]
            ),
        ),
    )


def warnings_of(config: RenderConfig) -> tuple[Warned, ...]:
    """Every warning that a configuration gives, before a weight is read."""
    return (*unknown_words(config), *too_long(config))


def _understood(prompt: str, strange: set[str]) -> str:
    """A prompt without the words that a model does not know, in a line."""
    kept = _WORD.sub(lambda found: "…" if found[0].lower() in strange else found[0], prompt)
    kept = re.sub(r"…(?:[\s\W]*…)+", "…", kept).strip()
    return kept if len(kept) <= _LONGEST else f"{kept[:_LONGEST].rsplit(maxsplit=1)[0]} …"


def encoding_of(job: RenderJob) -> Encoding:
    """How a video will be coded.

    Raises:
        UsageError: Format, codec, bits and quality do not go together.
    """
    encode, shape = job.config.encode, job.plan.geometry
    between = encode.interpolate
    return Encoding(
        format=format_of(job.output),
        width=shape.width,
        height=shape.height,
        fps=exact_fps(shape.fps),
        quality=encode.quality,
        codec_key=encode.codec_key,
        asked_bits=encode.bits,
        interpolate=None if between is None else exact_fps(between),
    )


def check_encoder(job: RenderJob) -> None:
    """Refuse, before anything is loaded, what the ffmpeg at hand cannot encode.

    Raises:
        UsageError: Format, codec, bits and quality do not go together.
        FfmpegMissing: There is no ffmpeg, or it lacks an encoder or a filter.
    """
    encoding = encoding_of(job)
    graph_module()
    ffmpeg = find_ffmpeg(encoding.codec.encoder)
    require_encoders(ffmpeg, encoding, sound=job.sound is not None)


def check_place(job: RenderJob, *, overwrite: bool) -> None:
    """Refuse, before anything is loaded, an output that cannot or must not be written.

    Raises:
        UsageError: The output is in no format that cfgen writes.
        OutputRefused: It exists, or its folder is missing or not writable.
        BudgetError: The disk is too small.
        FfmpegMissing: ffmpeg cannot encode it.
    """
    output = job.output
    check_output(output)
    check_encoder(job)
    if not overwrite:
        refuse_existing(output, run_of(output))
    elif run_of(output).is_dir():
        with disk_errors(run_of(output)):
            require_own(run_of(output))
    needed = estimate_of(job).disk_nbytes + SPARE_DISK_NBYTES
    free = shutil.disk_usage(output.absolute().parent).free
    if free < needed:
        raise BudgetError(
            f"the disk of {output} has {bytes_words(free)} free and the render needs about "
            f"{bytes_words(needed)}, of which {bytes_words(SPARE_DISK_NBYTES)} are a reserve",
            hint="free some space, choose another disk with -o, or shorten --duration; a smaller "
            "--disk-budget or --snapshot latents keeps less",
        )

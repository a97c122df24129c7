"""What a Python program asks of cfgen; the command line asks it with more flags.

    import cfgen

    film = cfgen.render("a red balloon drifts over snowy hills", output="a.mp4", duration="30s")
    for event in film:
        print(event)

Values are written as in a preset or on the command line, so `duration` may be 30, "30s" or "2m30s".
Whatever cannot be done raises a `cfgen.CfgenError`, which has a message, a hint and a code.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from cfgen.config.loader import load
from cfgen.config.presets import locate_model
from cfgen.config.values import RawValue
from cfgen.pipeline import decoding
from cfgen.pipeline.batch import BatchRunner, ClipList
from cfgen.pipeline.batch_on_ray import RayBatch
from cfgen.pipeline.branch import plan_branch, plan_retry, take_back
from cfgen.pipeline.job import RenderJob
from cfgen.pipeline.model_preset import recipe_of
from cfgen.pipeline.naming import completed
from cfgen.pipeline.rendering import Rendering, begin
from cfgen.pipeline.runs import run_folder

if TYPE_CHECKING:
    from cfgen.checkpoint.inspect.report import Report

Value = str | int | float | bool | Path | None | Iterable[object]

_SHORT = {
    "image": "begin.image",
    "last_image": "begin.last_image",
    "video": "begin.video",
    "start": "begin.from",
    "end": "begin.to",
    "keep_input": "begin.keep_input",
    "fit": "begin.fit",
    "audio": "audio.file",
    "audio_offset": "audio.offset",
    "audio_loop": "audio.loop",
    "audio_fade": "audio.fade",
}
"""Keys of what a video begins with and of its sound, by the names that functions here have."""


def plan(
    prompt: str = "", *, settings: Mapping[str, Value] | None = None, **values: Value
) -> RenderJob:
    """What a render will make and need; nothing is loaded.

    Args:
        prompt: What the video shows; left out where there are `shots`.
        settings: Values by dotted key, such as `{"memory.tau": 0.9}`; `cfgen presets show` lists
            the keys.
        values: Values at the top of a preset: `preset`, `output`, `duration`, `seed`, `size`,
            `fps`, `rng`, `order`, `device`, `dtype`, `threads`, `backend`, `transition`; `shots`:
            texts such as "8s: a red kite" or "6s cut: a boat", or mappings of `duration`, `prompt`
            and `transition`; what the video begins with: `image`, or `video` with `start`, `end`
            and `keep_input`, and `fit`; what it ends with, `last_image`; and its sound: `audio`, a
            file, with `audio_offset`, `audio_loop` and `audio_fade`.

    Returns:
        The job: its `config`, its `plan`, its `model`; `pipeline.plan.estimate_of` and
        `pipeline.memory_estimate.estimate_memory` tell what it takes.

    Raises:
        PresetError: A key is unknown or a value cannot be used.
    """
    named = {_SHORT.get(name, name): value for name, value in values.items()}
    given = {"prompt": " ".join(prompt.split()) or None, **named, **(settings or {})}
    flags = {key: _written(value) for key, value in given.items() if value is not None}
    return RenderJob(load(flags, recipe=recipe_of).config)


def render(
    prompt: str = "",
    *,
    overwrite: bool = False,
    settings: Mapping[str, Value] | None = None,
    **values: Value,
) -> Rendering:
    """Render a video from a prompt. Iterating over what is returned does it.

    Args:
        prompt: What the video shows; left out where there are `shots`.
        overwrite: Whether the video may replace a file.
        settings: As for `plan`.
        values: As for `plan`; without `output` a name is made from prompt and seed, in the current
            folder.

    Raises:
        CfgenError: A value cannot be used, or the video cannot be written there.
    """
    job = plan(prompt, settings=settings, **values)
    return begin(RenderJob(completed(job.config), job.model), overwrite=overwrite)


def resume(
    run: Path | str, *, parallel: int | None = None, allow_changed: Iterable[str] = ()
) -> Rendering:
    """Go on with a render that was interrupted, or verify one that is finished.

    Args:
        run: Its run folder or its video.
        parallel: Processes that render it from here on, if others than before.
        allow_changed: `cfgen_version` or `ffmpeg_version`, if another may go on with it.
    """
    return decoding.resume(
        run_folder(Path(run)), parallel=_text(parallel), allow_changed=frozenset(allow_changed)
    )


def branch(
    run: Path | str,
    *,
    at: float | str,
    output: Path | str,
    prompt: str | None = None,
    transition: str | None = None,
    seed: int | None = None,
    duration: float | str | None = None,
    overwrite: bool = False,
) -> Rendering:
    """Render another continuation of a video, from a moment of it, as a video of its own.

    Args:
        run: The run folder or the video that it starts from.
        at: The moment, in seconds or as a person writes it; the chunk that plays then is the first
            to be other.
        output: The new video.
        prompt: What it shows from there on, as a new shot.
        transition: What becomes of the memory there: continue, recache, flush, cut or fresh.
        seed: Another seed from there on; one is chosen if nothing else is new.
        duration: Its playing time.
        overwrite: Whether it may replace a file.
    """
    changes = {
        "prompt": prompt,
        "transition": transition,
        "seed": _text(seed),
        "duration": _text(duration),
    }
    return plan_branch(
        run_folder(Path(run)),
        at=str(at),
        output=Path(output),
        changes=changes,
        overwrite=overwrite,
    ).make()


def decode(
    run: Path | str,
    *,
    output: Path | str,
    settings: Mapping[str, Value] | None = None,
    overwrite: bool = False,
) -> Rendering:
    """Decode the latents that a finished run keeps to another video, without its generator.

    Args:
        run: The run folder or the video that it made.
        output: The new video; one that was begun goes on.
        settings: Values by dotted key, of `encode`, `audio`, `model.vae` and `model.vae_tile`.
        overwrite: Whether it may replace a file.
    """
    changes = {
        key: str(_written(value)) for key, value in (settings or {}).items() if value is not None
    }
    return decoding.decode_again(
        run_folder(Path(run)), output=Path(output), changes=changes, overwrite=overwrite
    )


def retry(
    run: Path | str,
    *,
    begin: float | str,
    prompt: str | None = None,
    transition: str | None = None,
    seed: int | None = None,
) -> Rendering:
    """Do a video over from a moment on; a finished one stays as ``NAME.take-1.mp4``.

    Args:
        run: The run folder or the video.
        begin: The moment; the chunk that plays then is the first to be made anew.
        prompt: What it shows from there on.
        transition: As for `branch`.
        seed: Another seed; one is chosen without it.
    """
    changes = {"prompt": prompt, "transition": transition, "seed": _text(seed)}
    return plan_retry(run_folder(Path(run)), begin=str(begin), changes=changes).make()


def undo_retry(run: Path | str) -> tuple[Path, Path]:
    """Put the newest take of a video back in its place; what is there becomes a take in turn.

    Args:
        run: The run folder or the video.

    Returns:
        The names of the take that is back, and of the one that the video becomes.
    """
    return take_back(run_folder(Path(run)))


def batch(
    clips: Path | str,
    *,
    overwrite: bool = False,
    attempts: int = 2,
    fail_fast: bool = False,
    ray: str | None = None,
) -> BatchRunner | RayBatch:
    """Render a list of clips; iterating over what is returned does it.

    Args:
        clips: A YAML list, a text with a prompt a line, JSON or CSV.
        overwrite: Whether videos may replace files.
        attempts: How often a clip is tried without getting any further.
        fail_fast: Whether the first clip that fails ends the list.
        ray: Address of a Ray cluster that makes them, ``host:port``; empty for the one that this
            machine belongs to, or else a new one on it. What happens to each comes as `OfClip`.
    """
    listed = ClipList.read(Path(clips))
    runner = BatchRunner(listed, overwrite=overwrite, attempts=attempts, fail_fast=fail_fast)
    return runner if ray is None else RayBatch(runner, ray)


def inspect(path: Path | str, *, digests: bool = True, values: bool = False) -> list[Report]:
    """What files of weights are, and whether cfgen loads them; see `Report`.

    Args:
        path: A file, the index of its shards, a folder, or owner/name[/file] in the cache of
            Hugging Face.
        digests: Whether the files are hashed, which reads them whole.
        values: Whether all weights are read and looked at.
    """
    from cfgen.checkpoint.inspect.inspect import inspect as look
    from cfgen.checkpoint.inspect.inspect import weights_in

    place = locate_model(str(path))
    paths = weights_in(place) if place.is_dir() else [place]
    return [look(each, digests=digests, values=values) for each in paths]


def _written(value: Value) -> RawValue:
    """A value as a preset holds it: text, or lists and mappings of it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str | int | float | Path):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): _written(each) for key, each in value.items()}
    return [_written(each) for each in value or ()]  # type: ignore[arg-type]


def _text(value: float | str | None) -> str | None:
    return None if value is None else str(value)

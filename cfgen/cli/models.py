"""`cfgen models`: what lies in the Hugging Face cache, and the one way for cfgen to add to it."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated
from urllib.parse import quote

import typer

from cfgen.cli import completion, options
from cfgen.cli.console import Console
from cfgen.cli.download_progress import Fetching
from cfgen.config import presets
from cfgen.config.loader import load
from cfgen.config.values import parse_lora
from cfgen.errors import Interrupted, SetupError, UsageError
from cfgen.files.reading import nbytes_under
from cfgen.hub.cache import (
    Snapshot,
    choose,
    in_cache,
    plan_removal,
    remove,
    snapshots,
    unfinished,
    verify,
)
from cfgen.hub.listing import Listing, check_room, hub_from, list_files
from cfgen.hub.pull import pull as pull_files
from cfgen.hub.reference import Reference, cache_folder, parse_reference
from cfgen.plain_text import cells, widths_of
from cfgen.units import bytes_words, count

app = options.command_app(
    "List, fetch, check and remove models in the Hugging Face cache.\n\n"
    "A model is named by a path on disk or as owner/name[@revision][/file]. Only `pull` uses the\n"
    "network; HF_HOME, HF_HUB_CACHE, HF_ENDPOINT, HF_TOKEN and HF_HUB_OFFLINE are heeded."
)

_Ref = Annotated[
    str,
    typer.Argument(
        metavar="REF",
        help="owner/name, owner/name@revision or owner/name/file.",
        autocompletion=completion.models,
    ),
]
_PullRef = Annotated[
    str,
    typer.Argument(
        metavar="REF",
        help="owner/name, owner/name@revision, owner/name/file, or a preset for all its parts.",
        autocompletion=completion.presets,
    ),
]
_OptionalRef = Annotated[
    str | None,
    typer.Argument(
        metavar="REF",
        help="What to check. Without it, everything that `cfgen models list` lists.",
        autocompletion=completion.models,
    ),
]
_Include = Annotated[
    list[str] | None,
    typer.Option("--include", metavar="GLOB", help="Only files like this; may be repeated."),
]
_Exclude = Annotated[
    list[str] | None,
    typer.Option("--exclude", metavar="GLOB", help="No files like this; may be repeated."),
]
_Revision = Annotated[
    str | None,
    typer.Option(
        "--revision", metavar="R", help="Branch, tag or commit; the same as REF@R.  [default: main]"
    ),
]
_Offline = Annotated[
    bool, typer.Option("--offline", help="Never use the network: refuse instead of fetching.")
]
_DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Show what would be fetched; fetch nothing.")
]
_Yes = Annotated[bool, typer.Option("-y", "--yes", help="Remove without asking.")]


@app.command("list")
@options.takes(options.Json, options.Debug)
def list_models(ctx: typer.Context) -> None:
    """List the models in the box and in the cache.

    The last column is what a model is called. Of the cache, those repositories are shown that hold
    parts of a video model: a generator, a LoRA, a text encoder or a VAE.
    """
    console = options.console_of(ctx)
    cache = cache_folder()
    boxed = sorted(path.parent for path in presets.presets_folder().glob("*/config.json"))
    found = [(snapshot, holds) for snapshot in snapshots(cache) if (holds := snapshot.holds())]
    rows = [("size", "files", "commit", "model")]
    box = [{"name": path.name, "path": str(path), "nbytes": nbytes_under(path)} for path in boxed]
    rows += [
        (bytes_words(nbytes_under(path)), str(len(_files(path))), "in the box", path.name)
        for path in boxed
    ]
    rows += [
        (bytes_words(s.nbytes), str(len(s.files)), s.commit[:7], str(s.reference)) for s, _ in found
    ]
    broken_off = unfinished(cache)
    lines = [*_table(rows), "", f"cache: {cache}"]
    lines += [
        f"{bytes_words(nbytes)} of {repo} came before its download was broken off"
        for repo, nbytes in broken_off.items()
    ]
    models = [{**_data(snapshot), "holds": list(holds)} for snapshot, holds in found]
    data = {"cache": str(cache), "box": box, "models": models, "unfinished": broken_off}
    console.result("\n".join(lines), data)


@app.command()
@options.takes(options.Quiet, options.Json, options.Debug)
def pull(
    ctx: typer.Context,
    ref: _PullRef,
    include: _Include = None,
    exclude: _Exclude = None,
    revision: _Revision = None,
    offline: _Offline = False,
    dry_run: _DryRun = False,
) -> None:
    """Fetch a model into the cache and check it.

    It prints where the model is. It checks the files that are there already, and fetches only
    missing and damaged ones. An interrupted download goes on where it stopped.

    \b
    Examples:
      cfgen models pull longlive
      cfgen models pull Wan-AI/Wan2.1-T2V-1.3B --exclude "*.mp4"
      cfgen models pull owner/name/model.safetensors --dry-run
    """
    console = options.console_of(ctx)
    hub = hub_from(offline=offline)
    if ref in presets.preset_names():
        references = _parts_of(ref, revision)
    else:
        references = [_reference(ref, revision)]
    listings = [
        list_files(each, hub, include=include or (), exclude=exclude or ()) for each in references
    ]
    shown = [line for listing in listings for line in _shown(listing)]
    parts = [{**_listed(listing), "dry_run": dry_run} for listing in listings]
    data = parts[0] if len(parts) == 1 else {"preset": ref, "parts": parts}
    if dry_run:
        console.result("\n".join(shown), data)
        return
    for line in shown:
        console.note(line)
    for listing in listings:
        check_room(listing)
        _follow(listing, console)
    console.result("\n".join(str(listing.path) for listing in listings), data)


@app.command("verify")
@options.takes(options.Quiet, options.Json, options.Debug)
def verify_models(ctx: typer.Context, ref: _OptionalRef = None) -> None:
    """Check cached files against their digests.

    This needs no network. Exits with 1 if a file is damaged or missing, and shows the commands
    that fetch it again.
    """
    console = options.console_of(ctx)
    cache = cache_folder()
    chosen = _chosen(ref, cache)
    states: dict[str, list[str]] = {"ok": [], "damaged": [], "missing": [], "unknown": []}
    lines, repairs = [], []
    for snapshot in chosen:
        console.note(f"checking {snapshot.reference}, {bytes_words(snapshot.nbytes)}")
        for verdict in verify([snapshot]):
            name = str(Reference(snapshot.repo, snapshot.commit, verdict.file.path))
            states[verdict.state].append(name)
            if verdict.state in ("damaged", "missing"):
                lines.append(f"{verdict.state}: {name}")
                repairs.append(verdict.repair_command)
    if states["unknown"]:
        lines.append(
            f"{count(len(states['unknown']), 'file')} cannot be checked: no link to a blob"
        )
    if repairs:
        lines += ["fetch again with", *(f"  {command}" for command in repairs)]
    else:
        lines.append(f"{count(len(states['ok']), 'file')} checked, all whole")
    console.result("\n".join(lines), {"files": states, "repair": repairs}, ok=not repairs)
    if repairs:
        raise typer.Exit(1)


@app.command("remove")
@options.takes(options.Json, options.Debug)
def remove_model(ctx: typer.Context, ref: _Ref, yes: _Yes = False) -> None:
    """Remove a model from the cache.

    REF is a repository with all its revisions, one revision or one file. cfgen asks first, and
    says how much disk that frees.
    """
    console = options.console_of(ctx)
    cache = cache_folder()
    removal = plan_removal(in_cache(ref, cache), cache)
    what = f"{removal.reference}, {bytes_words(removal.nbytes)} in {cache}"
    if not yes:
        if console.json or not sys.stdin.isatty():
            raise SetupError(
                f"cfgen cannot ask, so it removed nothing: {what}",
                "add -y to remove it without asking",
            )
        if not typer.confirm(f"remove {what}?", err=True):
            console.result("nothing was removed", {"removed": [], "nbytes": 0})
            return
    remove(removal)
    paths = [str(path) for path in removal.paths]
    console.result(f"removed {what}", {"removed": paths, "nbytes": removal.nbytes})


def _parts_of(preset: str, revision: str | None) -> list[Reference]:
    """Everything on the hub that a preset names, each once."""
    if revision is not None:
        raise UsageError("--revision goes with a repository, not with a preset")
    model = load({"preset": preset}, environ={}).config.model
    loras = [parse_lora(text)[0] for text in model.loras]
    named = [model.path, *loras, model.text_encoder, model.tokenizer, model.vae]
    found = [parse_reference(text) for text in named if text is not None]
    references = list(dict.fromkeys(each for each in found if each is not None))
    if not references:
        raise UsageError(f"the preset {preset} needs nothing from the hub")
    return references


def _reference(ref: str, revision: str | None) -> Reference:
    reference = parse_reference(ref)
    if reference is None:
        raise UsageError(
            f"{ref!r} is no name on the hub; it must be owner/name[@revision][/file]",
            "for example Wan-AI/Wan2.1-T2V-1.3B; a model that is on your disk needs no pull",
        )
    if revision is None:
        return reference
    if reference.revision is not None:
        raise UsageError(f"two revisions: {reference.revision} in REF and --revision {revision}")
    named = parse_reference(f"{reference.repo}@{quote(revision, safe='')}")
    if named is None:
        raise UsageError(f"--revision {revision!r} cannot be a branch, a tag or a commit")
    return Reference(reference.repo, revision, reference.file)


def _follow(listing: Listing, console: Console) -> None:
    """Fetch a listing and tell how it goes."""
    fetching = Fetching(listing)
    try:
        for step in pull_files(listing):
            if step.what == "damaged":
                console.warn(f"{step.file.path} is damaged in the cache and is fetched again")
            if words := fetching.words(step):
                console.note(words)
                console.event("fetch", fetching.data())
    except KeyboardInterrupt:
        raise Interrupted(
            f"interrupted; the part of {listing.reference} that is here stays",
            "run the same command again: it goes on from there",
        ) from None
    console.note(f"{count(len(listing.files), 'file')} checked, all whole")


def _shown(listing: Listing) -> list[str]:
    lines = []
    for file in listing.files:
        left = listing.missing(file)
        state = "" if left == file.nbytes else f", {bytes_words(left)} missing"
        state = ", there" if not left else state
        lines.append(f"{bytes_words(file.nbytes):>9}  {file.path}{state}")
    total = sum(file.nbytes for file in listing.files)
    left = sum(map(listing.missing, listing.files))
    of = f"{count(len(listing.files), 'file')}, {bytes_words(total)}"
    lines.append(f"{of}; {bytes_words(left)} to fetch from {listing.hub.endpoint}")
    lines.append(f"into {listing.folder}")
    return lines


def _listed(listing: Listing) -> dict[str, object]:
    return {
        "repo": listing.reference.repo,
        "commit": listing.commit,
        "path": str(listing.path),
        "nbytes_to_fetch": sum(map(listing.missing, listing.files)),
        "files": [asdict(file) for file in listing.files],
    }


def _chosen(ref: str | None, cache: Path) -> Sequence[Snapshot]:
    if ref is not None:
        return choose(in_cache(ref, cache), cache)
    return [snapshot for snapshot in snapshots(cache) if snapshot.holds()]


def _data(snapshot: Snapshot) -> dict[str, object]:
    return {
        "reference": str(snapshot.reference),
        "repo": snapshot.repo,
        "commit": snapshot.commit,
        "refs": list(snapshot.refs),
        "path": str(snapshot.folder),
        "nbytes": snapshot.nbytes,
        "files": [file.path for file in snapshot.files],
    }


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def _table(rows: Sequence[tuple[str, str, str, str]]) -> Iterable[str]:
    """Lay out rows that fit the terminal: a name that is too long stands below its row."""
    widths = widths_of(rows)
    columns = shutil.get_terminal_size().columns
    for size, files, commit, name in rows:
        left = f"{size:>{widths[0]}}  {files:>{widths[1]}}  {commit:{widths[2]}}"
        line = f"{left}  {name}"
        yield line if cells(line) <= columns else f"{left.rstrip()}\n  {name}"

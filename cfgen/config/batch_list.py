"""Lists of clips: cfgen's own YAML, plain text with a prompt a line, and lists of other tools.

Another tool's list is taken where every value of it means the same here; what has no counterpart
is refused by name, never dropped.
"""

from __future__ import annotations

import hashlib
import re
import string
import unicodedata
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from itertools import count
from pathlib import Path, PurePosixPath

import yaml

from cfgen.config.loader import Recipe, Resolved, known_keys, load
from cfgen.config.queues import FRAMES, Raw, entry, read_queue
from cfgen.config.schema import RenderConfig
from cfgen.config.shots import parse_shots, told
from cfgen.config.sources import EXTENSION, Entries, Entry, Origin, compose, flatten
from cfgen.config.values import nearest
from cfgen.errors import CfgenError, PresetError, Problem
from cfgen.files.writing import require_own_folders
from cfgen.video.formats import ENDINGS, FORMATS, MP4

VERSION = "1"
TEMPLATE = "{name}"
"""Where nothing names an output; the ending is that of the format."""
NAME_NBYTES = 100
_TOP = frozenset({"version", "defaults", "clips"})
_FIELDS = frozenset({"name", "seed", "preset"})
_RESERVED = re.compile(r"(con|prn|aux|nul|com[0-9]|lpt[0-9])(\..*)?", re.IGNORECASE)
# What a video is called until it is good.
_PART = re.compile(rf"\.part({'|'.join(map(re.escape, FORMATS))})?$", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True, slots=True)
class Clip:
    """One clip of a list.

    Attributes:
        name: What tells it from the others; also what its seed is made from.
        where: Its line, such as ``list.yaml:7``.
        config: What to render, with a seed and an output.
        note: What is to be told of how its list was read, or empty.
    """

    name: str
    where: str
    config: RenderConfig
    note: str = ""


def read_list(
    text: str,
    *,
    label: str,
    folder: Path,
    environ: Mapping[str, str],
    slug: Callable[[str, int], str],
    recipe: Recipe | None = None,
) -> list[Clip]:
    """Read a list of clips.

    Args:
        text: The list.
        label: Its name, for messages.
        folder: Where the videos go; no output may lie outside.
        environ: The environment.
        slug: Makes a name of at most so many bytes from a prompt.
        recipe: Tells the preset of a model; see `loader.load`.

    Raises:
        PresetError: Something is wrong; lists everything that is.
    """
    problems: list[Problem] = []
    resolve = partial(load, {}, base=folder, environ=environ, recipe=recipe)
    try:
        defaults, raws = _parsed(text.removeprefix("\ufeff"), label, problems)
    except RecursionError:
        raise PresetError([Problem(key="", where=label, reason="is nested too deeply")]) from None
    clips: list[Clip] = []
    names: dict[str, str] = {}
    outputs: dict[str, str] = {}
    for raw in raws:
        entries = _joined(defaults, raw.entries)
        words = _prompts(entries)
        name = raw.name if raw.name is not None else _made(slug(words, 4 * NAME_NBYTES))
        if raw.numbered and _same(name) in names:
            name = next(n for i in count(2) if _same(n := _made(name, f"-{i}")) not in names)
        if (reason := _bad_name(name)) is not None:
            problems.append(Problem(key="name", where=raw.where, reason=reason))
            continue
        if _same(name) in names:
            reason = f"{name!r} is also the name of the clip at {names[_same(name)]}; "
            reason += "give each a `name`" if raw.name is None else "choose another"
            problems.append(Problem(key="name", where=raw.where, reason=reason))
            continue
        names[_same(name)] = raw.where
        clip = _clip(raw, name, entries, defaults, folder, resolve, problems)
        if clip is None:
            continue
        output = _same(str((clip.config.output or folder).with_suffix("")))
        if output in outputs:
            reason = f"is also the output of the clip at {outputs[output]}"
            problems.append(Problem(key="output", where=raw.where, reason=reason))
        outputs[output] = raw.where
        clips.append(clip)
    if not raws and not problems:
        problems.append(Problem(key="clips", where=label, reason="there is no clip in the list"))
    if problems:
        raise PresetError(problems)
    return clips


def _joined(defaults: Entries, own: Entries) -> Entries:
    """A clip's entries over the defaults; a prompt or shots of its own stand for the other."""
    single = {"prompt", "duration"}
    dropped = single if "shots" in own else {"shots"} if single & set(own) else set()
    return {key: value for key, value in defaults.items() if key not in dropped} | own


def _prompts(entries: Entries) -> str:
    """What a clip shows, for its name; nothing where that is no prompt."""
    if "shots" not in entries:
        return str(entries["prompt"].tree) if "prompt" in entries else ""
    try:
        return told(parse_shots(entries["shots"].tree))
    except ValueError:
        return ""


def clip_seed(list_seed: str, name: str) -> int:
    """The seed of a clip: it depends on the list's seed and the clip's name alone."""
    key = hashlib.blake2b(f"{list_seed}/{name}".encode(), digest_size=4).digest()
    return int.from_bytes(key, "big") >> 1


def _clip(  # noqa: PLR0913 - the parts of a list
    raw: Raw,
    name: str,
    entries: Entries,
    defaults: Entries,
    folder: Path,
    resolve: Callable[..., Resolved],
    problems: list[Problem],
) -> Clip | None:
    list_seed = str(defaults["seed"].tree) if "seed" in defaults else "0"
    list_seed = "0" if list_seed == "-1" else list_seed
    origin = Origin(kind="run file", where=raw.where)
    if "seed" not in raw.entries or str(raw.entries["seed"].tree).strip() == "-1":
        entries = entries | {"seed": Entry(tree=str(clip_seed(list_seed, name)), origin=origin)}
    given = {key: entry for key, entry in entries.items() if key not in ("output", FRAMES)}
    try:
        config = resolve(run_entries=given).config
        if FRAMES in entries and config.shots:
            reason = "counts the frames of a film whose shots have durations"
            raise PresetError([Problem(key=FRAMES, where=raw.where, reason=reason)])
        if FRAMES in entries:
            frames = int(str(entries[FRAMES].tree))
            config = replace(config, duration_s=frames / config.playback_fps)
        if not config.prompt.strip():
            raise PresetError([Problem(key="prompt", where=raw.where, reason="is empty")])
        config.prompt.encode()
        made = TEMPLATE + (config.encode.ending or MP4.ending)
        template = str(entries["output"].tree) if "output" in entries else made
        config = replace(config, output=_output(template, name, config, folder))
    except PresetError as error:
        problems += [replace(p, where=p.where or raw.where) for p in error.problems]
        return None
    except CfgenError as error:  # of the recipe: the model is nowhere, or tells no preset
        reason = f"{error.message} ({error.hint})" if error.hint else error.message
        problems.append(Problem(key="model.path", where=raw.where, reason=reason))
        return None
    except UnicodeEncodeError:
        reason = "is not valid Unicode text"
        problems.append(Problem(key="prompt", where=raw.where, reason=reason))
        return None
    except ValueError as error:
        problems.append(Problem(key="output", where=raw.where, reason=str(error)))
        return None
    return Clip(name=name, where=raw.where, config=config, note=raw.note)


def _made(words: str, ending: str = "") -> str:
    """A name of words joined by hyphens, cut between two of them, and an ending."""
    room = NAME_NBYTES - len(ending.encode())
    octets = words.encode()
    if len(octets) > room:
        head = octets[: room + 1].decode(errors="ignore")
        whole = head.rpartition("-")[0]
        short = octets[:room].decode(errors="ignore")
        words = whole if len(whole.encode()) > room // 2 else short.rstrip("-")
    made = f"{words}{ending}"
    return f"{made}-clip" if _RESERVED.fullmatch(made) else made


def _bad_name(name: str) -> str | None:
    """Why a name cannot be that of a file anywhere, or None if it can."""
    if not name.strip() or name in (".", ".."):
        return f"must be a name, got {name!r}"
    if any(char in '/\\:*?"<>|' or not char.isprintable() for char in name):
        return f'must hold no / \\ : * ? " < > | and nothing unprintable, got {name!r}'
    if len(name.encode("utf-8", "surrogatepass")) > NAME_NBYTES:
        return f"must be at most {NAME_NBYTES} bytes long, got {name[:30]!r}..."
    if _RESERVED.fullmatch(name) or name[-1] in " ." or name[0] in " ." or _PART.search(name):
        return f"is no file name on every system, got {name!r}"
    return None


def _same(name: str) -> str:
    """What two names have in common that are one file on some file system."""
    return unicodedata.normalize("NFC", name).casefold()


def _output(template: str, name: str, config: RenderConfig, folder: Path) -> Path:
    """The video's place in `folder`. ValueError if the template leads out of it or is none."""
    values = {"name": name, "seed": str(config.seed), "preset": config.preset}
    try:
        parsed = list(string.Formatter().parse(template))
        if any(spec or conversion for _, _, spec, conversion in parsed):
            raise ValueError("takes fields without a format, such as {name}")
        fields = {field for _, field, _, _ in parsed if field is not None}
        unknown = fields - _FIELDS
        if unknown:
            known = ", ".join(sorted(_FIELDS))
            raise ValueError(f"knows the fields {known}, got {{{min(unknown)}}}")
        text = template.format(**values)
    except (IndexError, KeyError) as error:
        raise ValueError(f"is no template: {error}") from None
    path = PurePosixPath(text)
    parts = path.parts
    if path.is_absolute() or ".." in parts:
        raise ValueError(f"must stay in the folder of the list, got {text!r}")
    if path.suffix.lower() not in FORMATS:
        raise ValueError(f"must end in {ENDINGS}, got {text!r}")
    if reason := next(filter(None, map(_bad_name, (*parts[:-1], path.stem))), None):
        raise ValueError(f"each part of its path {reason}")
    if _PART.search(path.name):
        raise ValueError(f"is no file name on every system, got {text!r}")
    output = folder.joinpath(*parts)
    try:
        require_own_folders(output, folder)
    except OSError as error:
        raise ValueError(f"must stay in the folder of the list: {error.strerror}") from None
    return output


def _parsed(text: str, label: str, problems: list[Problem]) -> tuple[Entries, list[Raw]]:
    raws = read_queue(text, label, known_keys(), problems)
    if raws is not None:
        return {}, raws
    return _yaml(text, label, problems)


def _yaml(text: str, label: str, problems: list[Problem]) -> tuple[Entries, list[Raw]]:
    needs = "must hold `clips:` and a list"
    node = compose(text, label=label, needs=needs, problems=problems)
    if node is None:
        return {}, []
    top: dict[str, yaml.Node] = {}
    for key_node, value in node.value:
        key, where = str(key_node.value), f"{label}:{key_node.start_mark.line + 1}"
        if key.startswith(EXTENSION):
            continue
        if key not in _TOP:
            reason = f"is not a key of a list{nearest(key, _TOP)}"
            problems.append(Problem(key=key, where=where, reason=reason))
        elif key in top:
            problems.append(Problem(key=key, where=where, reason="is given twice"))
        top[key] = value
    version = top.get("version")
    if version is None or str(version.value) != VERSION:
        reason = f"must be {VERSION}" + ("" if version is None else f", got {version.value!r}")
        line = (version or node).start_mark.line + 1
        problems.append(Problem(key="version", where=f"{label}:{line}", reason=reason))
    defaults = _mapping(top.get("defaults"), label, problems)
    seed = defaults.get("seed")
    if seed is not None and not re.fullmatch("-1|[0-9]{1,20}", str(seed.tree)):
        reason = f"must be a whole number, got {seed.tree!r}"
        problems.append(Problem(key="seed", where=seed.origin.where, reason=reason))
    if (name := defaults.pop("name", None)) is not None:
        reason = "belongs to a clip, not to the defaults"
        problems.append(Problem(key="name", where=name.origin.where, reason=reason))
    listed = top.get("clips")
    if not isinstance(listed, yaml.SequenceNode):
        line = (listed or node).start_mark.line + 1
        reason = "must be a list of clips"
        problems.append(Problem(key="clips", where=f"{label}:{line}", reason=reason))
        return defaults, []
    return defaults, [raw for item in listed.value for raw in _item(item, label, problems)]


def _item(node: yaml.Node, label: str, problems: list[Problem]) -> Iterator[Raw]:
    where = f"{label}:{node.start_mark.line + 1}"
    if isinstance(node, yaml.ScalarNode):
        yield Raw(where, None, {"prompt": entry(str(node.value), where)})
    elif isinstance(node, yaml.MappingNode):
        entries = _mapping(node, label, problems)
        name = entries.pop("name", None)
        yield Raw(where, None if name is None else str(name.tree), entries)
    else:
        problems.append(Problem(key="clips", where=where, reason="a clip is a text or a mapping"))


def _mapping(node: yaml.Node | None, label: str, problems: list[Problem]) -> Entries:
    if node is None or (isinstance(node, yaml.ScalarNode) and not node.value):
        return {}
    if not isinstance(node, yaml.MappingNode):
        where = f"{label}:{node.start_mark.line + 1}"
        problems.append(Problem(key="", where=where, reason="must hold keys and values"))
        return {}
    known = known_keys() | {"name"}
    return flatten(node, "run file", label=label, known=known, problems=problems)

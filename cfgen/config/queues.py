"""Lists of prompts as other tools write them: each known form is read, anything else refused.

Plain text        a prompt a line; `#` begins a comment; musubi-tuner's --w --h --f --d may follow;
                  bullets, numbers and quotes around whole lines are no part of a prompt
Options           lines of `--prompt "..." --seed N`
JSON              a list of texts or of mappings, or one of either a line (JSON lines)
CSV               a header with a column `prompt`; commas, semicolons or tabs
LongLive          JSON lines of {"prompts_list": ["..."]}; several prompts are shots of 10 s
Infinity-RoPE     a line of `A[3s#] | B[4.5s]`, which are shots
VBench            JSON with `prompt_en`, `dimension`, `auxiliary_info`
MovieGenBench     CSV with `prompt`, `concept`, `motion_level`
"""

from __future__ import annotations

import csv
import io
import json
import re
import shlex
from collections.abc import Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass

from cfgen.config.shot_imports import infinity_shots, longlive_shots
from cfgen.config.sources import Entries, Entry, Origin, unknown_key
from cfgen.config.values import RawValue, raw_value
from cfgen.errors import Problem

FRAMES = "frames"
"""Frames that a tool counts; a duration follows once the playback rate is known."""

_PROMPTS = ("prompt", "prompt_en")
_ALIASES = {
    "w": "width",
    "h": "height",
    "f": FRAMES,
    "d": "seed",
    "frame_count": FRAMES,
    "num_frames": FRAMES,
    "video_length": FRAMES,
}
_MUSUBI = ("w", "h", "f", "d")
INFORMATION = frozenset(
    {"id", "index", "concept", "motion_level", "dimension", "auxiliary_info", "category", "tag"}
    | {"prompt_cn"}
)
"""What lists say of a prompt that changes no video."""
_OWN = frozenset({"name", "width", "height", FRAMES, *_PROMPTS})
_NUMBERED = re.compile(r"\s*([0-9]{1,6})[.)]\s+")
_BULLET = re.compile(r"\s*[-*•]\s+")
_COMMAND = re.compile(r"(\$\s*)?(cfgen|python[0-9.]*)\s")


@dataclass(frozen=True, slots=True)
class Raw:
    """One clip as its list has it.

    Attributes:
        where: Its line.
        name: Its name, or None for one that is made from the prompt.
        entries: Its values, by dotted key.
        numbered: Whether a second clip of the same name gets a number: its list cannot name clips.
        note: What is to be told of how it was read, or empty.
    """

    where: str
    name: str | None
    entries: Entries
    numbered: bool = False
    note: str = ""


def entry(text: RawValue, where: str) -> Entry:
    """A value of a list."""
    return Entry(tree=text, origin=Origin(kind="run file", where=where))


def lines_of(text: str) -> list[str]:
    """Lines as files have them: other separators of Unicode belong to a prompt."""
    return re.split(r"\r\n|\n|\r", text)


def read_queue(
    text: str, label: str, known: frozenset[str], problems: list[Problem]
) -> list[Raw] | None:
    """Read a list that is not in cfgen's own form.

    Args:
        text: The list.
        label: Its name, for messages.
        known: Dotted keys that a clip may set.
        problems: Receives what is wrong.

    Returns:
        The clips, or None if it is in cfgen's own form.
    """
    queue = _Queue(label, known, problems)
    head = next((line.strip() for line in lines_of(text) if _says(line)), "")
    if head.startswith(("{", "[")):
        return queue.json(text, head)
    if delimiter := queue.delimiter(lines_of(text)[0] if text else ""):
        return list(queue.csv(text, delimiter))
    if re.search(r"^(version|defaults|clips)\s*:", text, re.MULTILINE):
        return None
    if re.match(r"(prompts?|seed|name)\s*:|-\s+\w+\s*:\s|---$|%YAML", head):
        return None
    if label.lower().endswith((".csv", ".tsv")):
        queue.wrong(f"{label}:1", "must begin with a header that has a column `prompt`")
        return []
    return list(queue.plain(lines_of(text)))


def _says(line: str) -> bool:
    return bool(line.strip()) and not line.lstrip().startswith("#")


class _Queue:
    """Readers of the forms, for one list."""

    def __init__(self, label: str, known: frozenset[str], problems: list[Problem]) -> None:
        self._label, self._known, self._problems = label, known, problems

    def wrong(self, where: str, reason: str, key: str = "") -> None:
        self._problems.append(Problem(key=key, where=where, reason=reason))

    def plain(self, lines: list[str]) -> Iterator[Raw]:
        said = [line for line in lines if _says(line)]
        counts = [match and int(match[1]) for match in map(_NUMBERED.match, said)]
        marks = None
        if len(said) > 1 and counts == list(range(1, len(said) + 1)):
            marks = _NUMBERED
        elif said and all(map(_BULLET.match, said)):
            marks = _BULLET
        for number, line in enumerate(lines, start=1):
            if not _says(line):
                continue
            where, words = (
                f"{self._label}:{number}",
                marks.sub("", line, count=1) if marks else line,
            )
            if reason := _no_prompt(words.strip()):
                self.wrong(where, reason)
            elif words.lstrip().startswith("--"):
                yield from self._options(words, where)
            elif not (yield from self._infinity(words, where)):
                prompt, *options = re.split(r"\s+--(?=[a-z])", words.strip())
                given = {"prompt": unquoted(prompt)} | self._musubi(options, where)
                yield from self._raw(given, where)

    def _infinity(self, words: str, where: str) -> Generator[Raw, None, bool]:
        """A line of Infinity-RoPE's segments, if it is one."""
        try:
            read = infinity_shots(words)
        except ValueError as error:
            self.wrong(where, str(error))
            return True
        if read is not None:
            yield from self._raw({"shots": read[0]}, where, note=read[1])
        return read is not None

    def _musubi(self, options: Iterable[str], where: str) -> dict[str, RawValue]:
        values: dict[str, RawValue] = {}
        for option in options:
            name, _, value = option.partition(" ")
            if name not in _MUSUBI or not re.fullmatch("[0-9]{1,20}", value.strip()):
                known = ", ".join(f"--{known} N" for known in _MUSUBI)
                reason = f"--{option} has no counterpart in cfgen; of musubi's options it takes"
                self.wrong(where, f"{reason} {known}")
            else:
                values[_ALIASES[name]] = value.strip()
        return values

    def _options(self, line: str, where: str) -> Iterator[Raw]:
        try:
            words = shlex.split(line)
        except ValueError as error:
            self.wrong(where, f"is no line of options: {error}")
            return
        given: dict[str, RawValue] = {}
        while words:
            flag = words.pop(0)
            name, equals, value = flag.removeprefix("--").partition("=")
            values = [value] if equals else []
            while not equals and words and not words[0].startswith("--"):
                values.append(words.pop(0))
            if not flag.startswith("--") or not values:
                self.wrong(where, f"must hold options and their values, got {flag!r}")
                return
            given[name.replace("-", "_")] = " ".join(values)
        yield from self._raw(given, where)

    def json(self, text: str, head: str) -> list[Raw] | None:
        whole, parsed = _json(text)
        if parsed and isinstance(whole, list):
            listed = [(item, f"{self._label}: clip {n}") for n, item in enumerate(whole, start=1)]
        elif parsed and isinstance(whole, dict) and not {"prompts_list", *_PROMPTS} & set(whole):
            return None
        elif parsed:
            listed = [(whole, f"{self._label}:1")]
        elif head == "[prompt]" or head.startswith("[["):
            self.wrong(f"{self._label}:1", "is TOML; write a YAML list, JSON or CSV")
            return []
        elif not parsed and re.match(r"\s*\{\s*[\"']?(version|defaults|clips)\b", text):
            return None  # cfgen's own form, in flow style
        elif not re.match(r"[{\[]\s*([\"{\[]|$)", head):
            return list(self.plain(lines_of(text)))
        else:
            listed = list(self._json_lines(text))
        return [raw for item, where in listed for raw in self._item(item, where)]

    def _json_lines(self, text: str) -> Iterator[tuple[object, str]]:
        for number, line in enumerate(lines_of(text), start=1):
            item, fine = _json(line)
            if not line.strip():
                continue
            if not fine or not isinstance(item, dict | str):
                self.wrong(f"{self._label}:{number}", "is not a line of JSON")
                return
            yield item, f"{self._label}:{number}"

    def _item(self, item: object, where: str) -> Iterator[Raw]:
        if isinstance(item, str):
            yield from self._raw({"prompt": item}, where)
        elif isinstance(item, dict) and "prompts_list" in item:
            prompts = item["prompts_list"]
            texts = isinstance(prompts, list) and all(isinstance(p, str) for p in prompts)
            if len(item) != 1 or not texts:
                reason = 'must be LongLive\'s {"prompts_list": ["..."]} and nothing else'
                self.wrong(where, reason)
            elif len(prompts) == 1:
                yield from self._raw({"prompt": prompts[0]}, where)
            else:
                yield from self._raw({"shots": longlive_shots(prompts)}, where)
        elif isinstance(item, dict):
            yield from self._raw(dict(_flat(item)), where)
        else:
            self.wrong(where, "a clip is a text or a mapping", "clips")

    def delimiter(self, header: str) -> str:
        """What separates the columns of a CSV header, or nothing if it is none."""
        for delimiter in "\t,;" if self._label.lower().endswith(".tsv") else ",;\t":
            names = [_column(cell) for cell in next(csv.reader([header], delimiter=delimiter), [])]
            if any(name in _PROMPTS for name in names) and (
                len(names) > 1 or self._label.lower().endswith((".csv", ".tsv"))
            ):
                return delimiter
        return ""

    def csv(self, text: str, delimiter: str) -> Iterator[Raw]:
        rows = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
        names: list[str] = []
        while True:
            where = f"{self._label}:{rows.line_num + 1}"
            try:
                row = next(rows, None)
            except csv.Error as error:
                self.wrong(where, f"is not CSV: {error}")
                return
            if row is None:
                return
            if not names:
                names = [_column(cell) for cell in row]
                if twice := next((name for name in names if names.count(name) > 1), ""):
                    self.wrong(where, f"has two columns {twice!r}")
                    return
            elif len(row) != len(names) and any(row):
                self.wrong(where, f"has {len(row)} columns, and the header {len(names)}")
            elif any(row):
                cells = zip(names, row, strict=True)
                yield from self._raw({name: cell for name, cell in cells if cell.strip()}, where)

    def _raw(self, given: Mapping[str, RawValue], where: str, note: str = "") -> Iterator[Raw]:
        """A clip of values by their names in the list."""
        found: dict[str, RawValue] = {}
        for key, value in given.items():
            name = _ALIASES.get(key, key)
            if name in INFORMATION or name.split(".")[0] in INFORMATION:
                continue
            if name not in self._known | _OWN:
                self.wrong(where, unknown_key(name, self._known | _OWN), name)
                return
            found[name] = value
        prompts = [found.pop(name) for name in _PROMPTS if name in found]
        if "shots" not in found:
            if len(prompts) != 1 or not isinstance(prompts[0], str):
                self.wrong(where, "must have one `prompt`, a text, or `shots`")
                return
            found["prompt"] = " ".join(prompts[0].split())  # as `cfgen render` has it
        elif prompts:
            self.wrong(where, "must have a `prompt` or `shots`, not both")
            return
        width, height = found.pop("width", None), found.pop("height", None)
        if (width is None) != (height is None):
            self.wrong(where, "--w and --h belong together")
            return
        if width is not None:
            found["size"] = f"{width}x{height}"
        frames = found.get(FRAMES)
        if frames is not None and not re.fullmatch("[0-9]{1,9}", str(frames)):
            self.wrong(where, f"must be a whole number of frames, got {frames!r}", FRAMES)
            return
        named = found.pop("name", None)
        entries = {key: entry(value, where) for key, value in found.items()}
        yield Raw(where, None if named is None else str(named), entries, numbered=True, note=note)


def unquoted(text: str) -> str:
    """A prompt without the quotes around all of it, doubled ones within being single."""
    inside = text[1:-1].replace('""', "\0")
    if len(text) > 2 and text[0] == text[-1] == '"' and '"' not in inside:
        return inside.replace("\0", '"')
    return text


def _no_prompt(words: str) -> str:
    """Why a line of plain text is no prompt, or nothing."""
    if words.startswith("{") or re.search(r"\{[^{}]*\|[^{}]*\}", words):
        return (
            "has braces, which other tools fill in or choose from; write the prompt itself, or "
            "JSON as a whole"
        )
    if re.match(r'\[\s*(["{]|$)', words):
        return "begins like JSON and is none"
    if _COMMAND.match(words):
        return "is a command, not a prompt"
    return ""


def _json(text: str) -> tuple[object, bool]:
    try:
        return json.loads(text), True
    except (ValueError, RecursionError):
        return None, False


def _flat(item: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, RawValue]]:
    """Values of a JSON mapping by dotted key, as text."""
    for key, value in item.items():
        if isinstance(value, dict) and prefix.count(".") < 2:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", raw_value(value)


def _column(cell: str) -> str:
    return cell.strip().lower().replace(" ", "_").replace("-", "_")

"""What the shell offers when a value is completed: names that are on this machine.

Each function takes what is typed so far and returns what may stand there, with or without a word
about it. A shell that gets nothing offers file names.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from cfgen.config.keys import Key, keys
from cfgen.config.presets import preset_description, preset_names
from cfgen.errors import CfgenError
from cfgen.files.reading import WEIGHTS
from cfgen.hub.cache import snapshots
from cfgen.hub.reference import Reference, cache_folder
from cfgen.runs.folder import HARMLESS

Offered = list[tuple[str, str]]


def presets(incomplete: str) -> Offered:
    """Names of presets."""
    return [(name, preset_description(name)) for name in preset_names() if _fits(name, incomplete)]


def values_of(key: str) -> Callable[[str], list[str]]:
    """Make the function that offers the values of a key that takes a few names."""

    def values(incomplete: str) -> list[str]:
        every = (value.removesuffix("K") for value in keys()[key].values)  # a number to be typed
        return [value for value in every if _fits(value, incomplete)]

    return values


def models(incomplete: str) -> list[str]:
    """Repositories in the Hugging Face cache, and the files of weights in them."""
    return [name for name in _cached() if _fits(name, incomplete)]


def harmless(incomplete: str) -> list[str]:
    """What `--allow-changed` may name."""
    return [name for name in HARMLESS if _fits(name, incomplete)]


def assignments(incomplete: str) -> Offered:
    """Keys for `--set`; of the only one that is left, its values too."""
    found = [key for key in keys().values() if _fits(f"{key.name}=", incomplete)]
    exact = keys().get(incomplete.partition("=")[0])
    if exact is not None and "=" in incomplete:
        found = [exact]
    if len(found) == 1:
        return [each for each in _assigned(found[0]) if _fits(each[0], incomplete)]
    return [(f"{key.name}=", key.about) for key in found]


def _assigned(key: Key) -> Offered:
    """A key with each value that is known; two at least, so that no space follows the key."""
    values = key.values or ("", *([key.default] if key.default else []))
    return [(f"{key.name}={value}", key.about) for value in values]


def _cached() -> Iterator[str]:
    try:
        found = snapshots(cache_folder())
    except (CfgenError, OSError):  # a cache that cannot be read offers nothing
        return
    for snapshot in found:
        whole = snapshot.reference
        yield str(whole)
        for file in snapshot.files:
            if file.path.endswith(WEIGHTS):
                yield str(Reference(whole.repo, whole.revision, file.path))


def _fits(name: str, incomplete: str) -> bool:
    return name.startswith(incomplete)

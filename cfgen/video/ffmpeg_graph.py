"""ffmpeg-python, which builds command lines: whether it is there, and names that it cannot hash.

Several packages bring a module `ffmpeg`; only that of ffmpeg-python has the graph that is used.
"""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType
from typing import Any

from cfgen.errors import FfmpegMissing

_NEEDED = ("input", "output", "compile")
_RESERVED = 0x100000
"""First of the code points that stand for the bytes of a name that is no UTF-8."""
_LOW, _HIGH = 0xDC80, 0xDCFF
_SHIELD = {code: _RESERVED + code for code in range(_LOW, _HIGH + 1)}
_BACK = {shielded: code for code, shielded in _SHIELD.items()}


def graph_module() -> ModuleType:
    """The module `ffmpeg` of ffmpeg-python.

    Raises:
        FfmpegMissing: There is none, or another package's module has its name.
    """
    hint = (
        "uninstall the other package (`pip uninstall python-ffmpeg ffmpeg`), then "
        "`pip install --force-reinstall ffmpeg-python`"
    )
    try:
        import ffmpeg
    except ImportError as error:
        raise FfmpegMissing(
            f"the Python module ffmpeg cannot be imported: {error}", "pip install ffmpeg-python"
        ) from error
    if not all(hasattr(ffmpeg, name) for name in _NEEDED):
        place = getattr(ffmpeg, "__file__", None) or "another package"
        raise FfmpegMissing(
            f"the Python module ffmpeg is not that of ffmpeg-python: it comes from {place}", hint
        )
    found: ModuleType = ffmpeg
    return found


def shielded(name: str) -> str:
    """A file name as a graph can hold it; `argv_of` turns it back."""
    return name.translate(_SHIELD)


def argv_of(stream: Any, prefix: Sequence[str]) -> list[str]:
    """The command line of a graph.

    Args:
        stream: Its output.
        prefix: The binary and its global options.
    """
    argv: list[str] = graph_module().compile(stream, cmd=list(prefix))
    return [part.translate(_BACK) for part in argv]

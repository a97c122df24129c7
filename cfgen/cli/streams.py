"""Lines on stdout and stderr, whatever has become of the terminal; nothing else writes to them."""

from __future__ import annotations

import io
import os
import sys
from contextlib import suppress
from typing import TextIO, cast

from cfgen.errors import PrintError
from cfgen.plain_text import printable


def print_line(text: str) -> None:
    """Write to stdout.

    Raises:
        PrintError: It cannot be written to; nobody being there to read is not such a case.
    """
    if sys.stdout is None:
        raise PrintError("stdout is closed", "leave it open, or send it to a file")
    try:
        write(sys.stdout, text, octets=True)
    except BrokenPipeError:
        raise
    except (OSError, ValueError) as error:
        with suppress(OSError, ValueError):  # what is still buffered would fail again at exit
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        reason = error.strerror if isinstance(error, OSError) else error
        raise PrintError(
            f"stdout cannot be written to: {reason}",
            "free some space where it goes, then run the command again",
        ) from None


def tell(text: str, *, label: str = "") -> None:
    """Write to stderr; that nobody can read it any more is no reason to stop anything."""
    write(cast(TextIO, SteadyStderr()), text, label=label)


def write(stream: TextIO, text: str, *, label: str = "", octets: bool = False) -> None:
    """Write a line, in which texts of others can give the terminal no orders.

    What the encoding of a terminal lacks is written out as an escape.

    Args:
        stream: Where to.
        text: What to write.
        label: A word before it that may be coloured.
        octets: Whether file names that are no text go out as the bytes that they are, for
            programs; a terminal gets escapes in any case.
    """
    octets = octets and isinstance(stream, io.TextIOWrapper) and not stream.isatty()
    shown = printable(text, octets=octets)
    line = f"{label} {shown}\n" if label else f"{shown}\n"
    try:
        stream.write(line)
    except UnicodeEncodeError:
        encoding = stream.encoding
        try:
            encoded = line.encode(encoding, "surrogateescape" if octets else "backslashreplace")
        except UnicodeEncodeError:
            encoded = line.encode(encoding, "backslashreplace")
        stream.flush()
        stream.buffer.write(encoded)
    stream.flush()


class SteadyStderr(io.TextIOBase):
    """The stderr of the moment; what it cannot take, being closed, full or hung up, is dropped."""

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """That of stderr."""
        return getattr(sys.stderr, "encoding", None) or "ascii"

    def write(self, text: str) -> int:
        """Write what can be written."""
        with suppress(OSError, ValueError, AttributeError):  # None where it was closed from outside
            try:
                sys.stderr.write(text)
            except UnicodeEncodeError:
                encoding = self.encoding
                sys.stderr.write(text.encode(encoding, "backslashreplace").decode(encoding))
        return len(text)

    def flush(self) -> None:
        """Flush what can be flushed."""
        try:
            with suppress(ValueError, AttributeError):
                sys.stderr.flush()
        except OSError:
            with suppress(OSError, ValueError):  # what is still buffered would fail at exit
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())

    def isatty(self) -> bool:
        """Whether it is a terminal."""
        try:
            return sys.stderr.isatty()
        except (ValueError, AttributeError):
            return False

    def fileno(self) -> int:
        """Its descriptor."""
        return sys.stderr.fileno()

"""What lies in a run folder by name, and its removal: nothing that is not of cfgen may go."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

from cfgen.errors import OutputRefused
from cfgen.files.writing import disk_errors, sync_folder

RECORD = "run.json"
JOURNAL = "journal.jsonl"
LOCK = "lock"
LOG = "log.txt"
_OWN = re.compile(
    r"(run(\.[0-9a-f]{8})?(\.part)?\.json|journal(-\d+)?(\.[0-9a-f]{8})?(\.part)*\.jsonl"
    r"|lock(\.[0-9a-f]{16})?|log(\.[0-9a-f]{8}\.part)?\.txt|sound(\.part)?\.(aac|flac)"
    r"|preview(\.[0-9a-f]{8})?(\.part)?\.(mp4|jpg)|score(\.part)?\.json"
    r"|latents|segments|snapshots(-\d+)?)"
)
_LITTER = re.compile(
    r"\.DS_Store|\._.*|\.AppleDouble|\.localized|Icon\r|@eaDir|@tmp|\.@__thumb|#recycle"
    r"|(eh)?thumbs\.db|desktop\.ini|\.directory|\.nfs[0-9a-f]+|\.fuse_hidden.*|\.smbdelete.*"
    r"|\.syncthing\..*\.tmp|~syncthing~.*\.tmp|\.dropbox(\.attr|\.cache)?|\.goutputstream-.*"
    r"|.*\.!(sync|bt|ut)|.*\.[0-9a-f]{8}\.partial|\.unison\..*\.tmp|\.csync_journal\.db.*"
    r"|\.(run\.json|journal(-\d+)?\.jsonl|lock|log\.txt)\.[a-z0-9]{6}|.*@Syno(EAStream|Resource)"
    r"|\.apdisk|\.TemporaryItems|\.fseventsd|\.Spotlight-V100|\.~lock\..*#"
    r"|\..*\.~[0-9a-f]+|\.sync_.*\.db(-(wal|shm))?|\.owncloudsync.*|\.tmp\.drive(up|down)load",
    re.IGNORECASE,
)
"""What file managers, network drives and sync tools leave behind; it may go with the folder."""


def make_empty(path: Path) -> None:
    """Make the folders of a run, for good; what is there of an earlier one goes.

    Raises:
        OutputRefused: Something in it is not of cfgen.
        BudgetError, WriterError: The disk refused.
    """
    with disk_errors(path):
        path.mkdir(exist_ok=True)
        clear(path)
        for name in ("latents", "segments"):
            (path / name).mkdir()
        sync_folder(path)
        sync_folder(path.parent)


def clear(path: Path) -> None:
    """Remove what a run folder holds but its lock.

    Record and journal go first: a run that is half removed is none.

    Raises:
        OSError: The disk refused.
        OutputRefused: Something in the folder is not of cfgen.
    """

    def order(entry: Path) -> int:
        return 0 if entry.name == RECORD else 1 if entry.name.startswith("journal") else 2

    require_own(path)
    for entry in sorted(path.iterdir(), key=order):
        if entry.name == LOCK:
            continue
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()


def require_own(path: Path) -> None:
    """Refuse a run folder that holds something of somebody's; the litter of systems is nobody's.

    Raises:
        OSError: The disk refused.
        OutputRefused: Something in the folder is not of cfgen.
    """
    for entry in sorted(path.iterdir()):
        if not _OWN.fullmatch(entry.name) and not _LITTER.fullmatch(entry.name):
            raise OutputRefused(f"{path} holds {entry.name}, which is not of cfgen", "move it away")


def remove(path: Path) -> None:
    """Remove a run folder; the caller holds its lock, which goes last.

    Raises:
        BudgetError, WriterError: The disk refused.
        OutputRefused: Something in the folder is not of cfgen.
    """
    with disk_errors(path):
        clear(path)
        (path / LOCK).unlink(missing_ok=True)
        path.rmdir()

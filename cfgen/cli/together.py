"""Commands that a launcher, as torchrun, starts as several processes: one leads, others follow."""

from __future__ import annotations

from collections.abc import Callable

from cfgen.cli.console import Console
from cfgen.errors import CfgenError
from cfgen.parallel.launch import Launched

COMMANDS = ("render", "resume", "branch", "retry")
"""Those that render one film. Processes of others, such as `batch`, know nothing of each other."""


def run(app: Callable[[], object], told: Launched) -> None:
    """Run the command line as one of several processes.

    Args:
        app: What the lead does; it ends by SystemExit.
        told: What the launcher tells.

    Raises:
        SystemExit: Always.
    """
    if told.rank:
        raise SystemExit(_follow())
    try:
        app()
    except SystemExit as end:
        if not end.code:  # else the launcher ends the others
            _let_go()
        raise


def _follow() -> int:
    from cfgen.pipeline.follower import follow_launched

    try:
        follow_launched()
    except CfgenError as error:
        Console().error(error)
        return error.exit_code
    return 0


def _let_go() -> None:
    """Tell the others that there is nothing more to do, even where there was nothing at all."""
    from cfgen.parallel.group import joined
    from cfgen.parallel.messages import End

    group = joined()
    group.tell(End())
    group.close()

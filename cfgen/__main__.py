"""`python -m cfgen` and `cfgen`: signals are heeded before anything else is imported."""

from __future__ import annotations

from cfgen.cli import signals


def main() -> None:
    """Run the command line."""
    signals.run(_command)


def _command() -> None:
    from cfgen.cli.app import command

    command()


if __name__ == "__main__":
    main()

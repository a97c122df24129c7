"""`python -m cfgen` is the same command as `cfgen`."""

from __future__ import annotations

from cfgen.cli.app import main

if __name__ == "__main__":
    main()

"""The entry point of the command ``monailabel-xnat``, and of ``python -m monailabel_xnat``."""

from __future__ import annotations

import sys


def main() -> int:
    """Run the command, and return its exit status.

    The command is imported here and not at the top, because Ctrl-C during the import would show a traceback there.
    """
    try:
        from monailabel_xnat.cli.main import main as run

        return run()
    except KeyboardInterrupt:
        return 130  # EXIT_INTERRUPTED of cli/main.py, which may not have been imported yet


if __name__ == "__main__":
    sys.exit(main())

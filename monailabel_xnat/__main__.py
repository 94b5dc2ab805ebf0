"""``python -m monailabel_xnat`` is the command ``monailabel-xnat``."""

from __future__ import annotations

import sys

from monailabel_xnat.cli.main import main

if __name__ == "__main__":
    sys.exit(main())

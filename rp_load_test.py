#!/usr/bin/env python3
"""Load tests for any RunPod endpoint: python rp_load_test.py --help

Needs Python 3.11, aiohttp and rich; nothing has to be installed of this repository itself.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent / "src"))

try:
    from llmpod.loadtest.cli import main
except ModuleNotFoundError as missing:
    if missing.name not in ("aiohttp", "rich"):
        raise
    sys.exit(f"rp_load_test.py needs {missing.name}: pip install aiohttp rich")

if __name__ == "__main__":
    sys.exit(main())

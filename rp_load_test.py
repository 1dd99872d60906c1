#!/usr/bin/env python3
"""Load tester for any RunPod endpoint: python rp_load_test.py --help

Needs Python 3.11, aiohttp and rich; nothing has to be installed of this repository itself.
"""

import sys
from importlib.util import find_spec
from pathlib import Path

if find_spec("llmpod") is None:  # a checkout that was not installed
    sys.path.insert(0, str(Path(__file__).resolve().parent / "src"))

from llmpod.__main__ import main

if __name__ == "__main__":
    sys.exit(main(["loadtest", *sys.argv[1:]]))

"""Entry point for RunPod: settings -> engine -> `runpod.serverless.start`; without RunPod, one job on this machine.

python handler.py                                     run test_input.json
python handler.py --test_input '{"input": {...}}'     run the given job
python handler.py --profile-start                     and print where the time of the start went
python handler.py --rp_serve_api                      a RunPod endpoint on this machine, with this worker behind it
"""

import sys
from importlib.util import find_spec
from pathlib import Path

if find_spec("llmpod") is None:  # a checkout that was not installed
    sys.path.insert(0, str(Path(__file__).resolve().parent / "src"))

from llmpod.__main__ import worker

if __name__ == "__main__":
    sys.exit(worker(sys.argv[1:]))

"""The command line: `python -m llmpod.endpoint`."""

import sys

from llmpod.endpoint.cli import serve

if __name__ == "__main__":
    sys.exit(serve(sys.argv[1:]))

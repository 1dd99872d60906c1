"""python -m llmpod.loadtest"""

import sys

from llmpod.loadtest.cli import main

sys.exit(main())

"""python -m llmpod.loadtest"""

import sys

from llmpod.loadtest.cli.main import main

sys.exit(main())

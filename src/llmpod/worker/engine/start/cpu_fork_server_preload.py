"""Imported by the fork server before anything else: until a process is forked, it collects no garbage (see heap.py).

The server, and what it forks, end with the worker: by itself it would notice that the worker is gone when it has
imported everything.
"""

import gc

from llmpod.worker import shutdown

gc.disable()
shutdown.end_with_parent()
shutdown.children_end_with_this_process()

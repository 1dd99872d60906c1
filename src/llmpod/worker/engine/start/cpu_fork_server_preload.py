"""First import of the fork server: disables garbage collection until a process is forked (see heap.py).

The server and its children end with the worker; by itself the server would only notice its end after all imports.
"""

import gc

from llmpod.worker import shutdown

gc.disable()
shutdown.end_with_parent()
shutdown.children_end_with_this_process()

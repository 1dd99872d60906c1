"""Imported by the fork server before anything else: until a process is forked, it collects no garbage (see heap.py)."""

import gc

gc.disable()

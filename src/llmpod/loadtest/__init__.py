"""Load tests for any RunPod endpoint, the real one or the local one.

Nothing is imported here: a test or a notebook may import one room (`llmpod.loadtest.stats`, say) and pay for that one
only.
"""

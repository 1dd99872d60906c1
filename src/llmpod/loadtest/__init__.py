"""Load tests for any RunPod endpoint, the real one or the local one.

Nothing is imported here: importing one module (`llmpod.loadtest.stats`, say) does not import the others.
"""

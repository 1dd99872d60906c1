"""RunPod's queue: polls for jobs, runs them, delivers chunks and results, and shuts down.

The only folder that imports the RunPod SDK.
"""

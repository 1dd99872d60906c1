"""RunPod's queue: polls for jobs, runs them, delivers chunks and results.

The only folder that imports the RunPod SDK.
"""

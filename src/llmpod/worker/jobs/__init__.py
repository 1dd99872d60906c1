"""A job as plain data: input, limits, slots, output, profile and log lines.

In: RunPod's job dictionary. Out: decisions, replies and events. No I/O, no vLLM, no RunPod SDK.
"""

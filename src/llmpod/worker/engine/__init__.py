"""vLLM in this process: its start, sampling parameters, rendered prompts, constraints and health.

In: a checked request. Out: steps of its answer. The only folder that imports vllm.
"""

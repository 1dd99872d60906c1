"""vLLM engine in this process: start, sampling parameters, rendered prompts, constraints and health.

In: a checked request. Out: steps of its answer. The only folder that imports vllm.
"""

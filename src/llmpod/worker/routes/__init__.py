"""OpenAI, Anthropic and vLLM routes as jobs.

In: a route and a body. Out: the answer of vLLM's own application as replies, or a typed failure.
"""

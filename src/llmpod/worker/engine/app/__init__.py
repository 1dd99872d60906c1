"""vLLM's HTTP application, called in memory over ASGI, and its engine client."""

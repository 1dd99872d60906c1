"""vLLM's HTTP application, called in memory over ASGI, and the engine client that it is given."""

"""HTTP server of the worker, for load-balancing endpoints: /ping, vLLM's routes, native jobs as POST /native."""

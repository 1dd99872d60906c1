"""HTTP API of the local endpoint: clients, OpenAI clients, workers, and control."""

"""RunPod's load-balancing endpoint: HTTP requests go straight to worker processes, by requests in flight.

What is documented comes from docs.runpod.io, serverless/load-balancing: overview, build-a-worker, worker-affinity.
"""

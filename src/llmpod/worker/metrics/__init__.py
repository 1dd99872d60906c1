"""Metrics of the worker: their catalogue, the Prometheus objects, and the ways out of a worker without ports."""

"""Smoke test of an endpoint: a few jobs that tell whether a deployment works, and a record of what was deployed."""

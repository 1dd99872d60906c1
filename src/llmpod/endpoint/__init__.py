"""A RunPod endpoint on your own machine: queue, autoscaler, real worker processes, the public API."""

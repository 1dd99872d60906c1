"""Load tests for any RunPod endpoint, the real one or the local one."""

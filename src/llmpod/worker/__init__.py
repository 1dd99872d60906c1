"""Everything that runs inside a RunPod worker."""

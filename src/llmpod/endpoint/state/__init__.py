"""Jobs, queue and workers of the local endpoint as data, and which worker gets which job."""

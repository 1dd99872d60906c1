"""Jobs, queue and workers of the local endpoint as data, which worker gets which job, and how many are needed."""

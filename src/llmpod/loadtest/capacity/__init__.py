"""How many workers for which rate: a queueing model fitted to a run, and its simulation."""

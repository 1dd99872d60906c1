"""Sending a load: clients, modes, pacing, guards, probes. Out: one record per job."""

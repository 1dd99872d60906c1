"""Profiles: what a use case may be asked, how it is asked, and what its answers must be, as data in a TOML file."""

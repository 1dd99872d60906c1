"""Start of the engine: its arguments, processes and adapters, and the diagnosis of a start that failed."""

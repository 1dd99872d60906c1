"""Engine start: arguments, processes, adapters, and diagnosis of failed starts."""

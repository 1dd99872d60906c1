"""Worker processes of the local endpoint."""

"""Worker processes of the local endpoint, and the autoscaler that decides how many there are."""

"""What the local endpoint tells about itself: metrics, a log of jobs, webhooks, the terminal."""

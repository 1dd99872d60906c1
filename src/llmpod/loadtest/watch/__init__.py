"""Watch: polls an endpoint's /health, sends probe jobs, and serves what it sees to Prometheus."""

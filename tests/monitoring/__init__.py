"""What `deploy/monitoring/` holds, and that Prometheus understands it."""

"""`wings-proxy up`: sidecar and engine on one machine, the same way as in the pod."""

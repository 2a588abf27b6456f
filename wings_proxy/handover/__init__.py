"""The shared volume: what the sidecar and the engine container hand to each other."""

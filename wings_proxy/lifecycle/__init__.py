"""The state machine, the one task that owns it, and the children that send it facts."""

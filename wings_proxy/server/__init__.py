"""Our own HTTP surface: which path goes where, and what our own endpoints answer."""

"""Clients people use, as programs in environments of their own, against the whole sidecar: see README.md."""

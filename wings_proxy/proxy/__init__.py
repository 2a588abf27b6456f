"""The byte path: one request, from the client to the engine and back."""

"""The pages in a real browser: the system's Chromium, driven by playwright from an environment of its own."""

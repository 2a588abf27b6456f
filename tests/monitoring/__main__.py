"""Write the files of `deploy/monitoring/` that are made from others: `python -m tests.monitoring`."""

from __future__ import annotations

from tests.monitoring.files import GENERATED

for file, text in GENERATED.items():
    file.write_text(text(), "utf-8")

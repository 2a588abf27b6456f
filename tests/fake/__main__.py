"""`python -m tests.fake`: see `tests/fake/program.py`."""

from tests.fake.program import main

main()

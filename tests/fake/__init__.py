"""A stand-in for vLLM, SGLang and llama.cpp's server: their answers and their log, and every way they fail.

Shapes, header names and log lines follow captures of vLLM 0.32.0, SGLang 0.5.23 and llama.cpp b11549; a curated
copy of those lies in `tests/data`, and `tests/test_captures.py` holds the two together.
"""

"""Benchmarks: the engine, the raw limits of the machine beside it, and its peers. ``python -m benchmarks``."""

"""Deterministic simulation: whole clusters of workers in one thread, whose time, order and faults a seed decides."""

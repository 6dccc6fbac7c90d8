"""Judging units in Python, for the backends that do: what a unit finds, whether it wins, and what is to be written.

A batch is judged against what is remembered of the store (`caches`), and written by the backend once its last unit was
judged. So a unit that loses leaves nothing to undo, and one that wins is seen by those behind it.
"""

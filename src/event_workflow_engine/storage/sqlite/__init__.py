"""The SQLite backend: one file, one writer thread, a pool of readers, several processes."""

from event_workflow_engine.storage.sqlite.storage import SqliteStorage

__all__ = ["SqliteStorage"]

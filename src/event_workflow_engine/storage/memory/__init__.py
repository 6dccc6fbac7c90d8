"""The memory backend: the readable specification of what every backend does."""

from event_workflow_engine.storage.memory.storage import MemoryStorage

__all__ = ["MemoryStorage"]

"""Where everything is kept: the port, its one atomic write, and the backends behind it."""

from event_workflow_engine.storage.opening import open_storage
from event_workflow_engine.storage.port import Storage

__all__ = ["Storage", "open_storage"]

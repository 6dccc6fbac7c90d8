"""The PostgreSQL backend: one database shared by many worker processes on many hosts. Needs the extra ``postgres``."""

from event_workflow_engine.storage.postgres.storage import PostgresStorage

__all__ = ["PostgresStorage"]

"""Durable sagas on one event log."""

"""The parts of `EventBus`: delivery in partitions, dead letters, durable feeds."""

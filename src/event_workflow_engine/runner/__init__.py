"""The runner: the deterministic loop, the scripts, and what keeps sagas in memory."""

"""The parts of `WorkflowScheduler`: what can run, and the firing of slots."""

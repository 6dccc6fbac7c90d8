"""What `event_workflow_engine.saga` is made of."""

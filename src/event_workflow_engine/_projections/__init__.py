"""The parts of `ProjectionManager`: definitions, folding, the runners."""

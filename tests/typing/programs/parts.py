# parts.py
from dataclasses import dataclass
from event_workflow_engine import CompensationManager, EventStore, SnapshotManager, StateMachine, WorkflowState
from event_workflow_engine.snapshots import every, older_than
from event_workflow_engine.storage import open_storage

def machines() -> None:
    door = StateMachine({"open": {"shut"}, "shut": {"open"}}, "open", guards={("open", "shut"): lambda: True})
    door.transition_to("shut")
    print(door.state, door.mermaid())
    assert StateMachine().can(WorkflowState.RUNNING)      # no table: the engine's own

async def delete_file(path: str, force: bool) -> None: ...

async def compensations() -> None:
    async with CompensationManager() as undo:             # run() if the block raises, else discard()
        undo.schedule(delete_file, "upload", True)

@dataclass
class Cart:
    items: list[str]

async def snapshots() -> None:
    async with open_storage("sqlite:///cart.db") as storage:
        manager = SnapshotManager(EventStore(storage))
        manager.register(Cart, every(100) | older_than(3600), schema_version=2)
        await manager.save("cart-1", Cart(["lamp"]), version=100)
        print(await manager.load("cart-1", Cart))

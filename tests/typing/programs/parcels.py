# parcels.py
from dataclasses import dataclass
from event_workflow_engine import WorkflowEngine, current_event, event

@event("parcel-sent")
@dataclass(frozen=True)
class ParcelSent:
    order: str

async def notify(event: ParcelSent) -> None: print("mail", event.order)
def index(event: ParcelSent) -> None: print("at", current_event().position)

async def main(engine: WorkflowEngine) -> None:
    mail = engine.bus.subscribe(ParcelSent, notify, key=lambda e: e.order)
    engine.bus.subscribe(ParcelSent, index, durable="search-index")
    await engine.bus.publish(ParcelSent("o-1"))                # notify; not stored
    await engine.store.append("order-o-1", ParcelSent("o-1"))  # both
    await engine.bus.drain()
    mail.cancel()

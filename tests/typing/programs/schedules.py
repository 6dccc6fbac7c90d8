# schedules.py
from datetime import timedelta
from event_workflow_engine import Task, WorkflowEngine
from orders import Order, fulfil

def purge(days: int = 30) -> None: print("purged", days)

async def main(engine: WorkflowEngine, order: Order) -> None:
    engine.register(fulfil)
    engine.scheduler.register(purge)
    once = await engine.scheduler.schedule(Task.saga(fulfil, order), delay=timedelta(days=3))
    await engine.scheduler.cron("0 2 * * *", purge, tz="Europe/Amsterdam", missed="once")
    await engine.scheduler.every(300, Task.call(purge, 7), id="purge-often")
    await engine.scheduler.cancel(once)

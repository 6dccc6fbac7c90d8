# bank.py
from dataclasses import dataclass
from event_workflow_engine import Aggregate, DocumentProjection, SqlProjection, WorkflowEngine, event
from event_workflow_engine.projections import Transaction
from event_workflow_engine.snapshots import every

@event("account-opened")
@dataclass(frozen=True)
class Opened:
    account: str

@event("money-deposited")
@dataclass(frozen=True)
class Deposited:
    account: str
    cents: int

@dataclass(frozen=True)
class Deposit:
    account: str
    cents: int

@dataclass
class Account(Aggregate[Opened | Deposited], category="account"):
    cents: int = 0

    def apply(self, event: Opened | Deposited, /) -> None:
        match event:
            case Opened(): pass
            case Deposited(cents=cents): self.cents += cents

def deposit(account: Account, command: Deposit) -> list[Deposited]:
    if not account.version: raise LookupError(command.account)
    return [Deposited(command.account, command.cents)]

@dataclass(frozen=True)
class Balance:
    cents: int = 0

balances = DocumentProjection("balances", Balance, mode="inline")
totals = DocumentProjection("totals", Balance)                # mode="async"

@balances.on(Deposited, key=lambda e: e.account)
@totals.on(Deposited, key=lambda e: "all")
def add(doc: Balance | None, event: Deposited) -> Balance | None:  # None deletes
    return Balance((doc or Balance()).cents + event.cents)

ledger = SqlProjection("ledger", tables={"ledger": "account TEXT NOT NULL, cents BIGINT NOT NULL"})

@ledger.on(Deposited)
async def book(tx: Transaction, event: Deposited) -> None:
    await tx.execute("INSERT INTO {ledger} VALUES (:account, :cents)", account=event.account, cents=event.cents)

async def main(engine: WorkflowEngine) -> None:
    engine.projections.register(balances, totals, ledger)
    engine.snapshots.register(Account, every(100))
    engine.commands.register(Deposit, deposit, aggregate=Account, key=lambda c: c.account)
    accounts = engine.repository(Account)
    await accounts.save(await accounts.load("a1"), [Opened("a1")])
    done = await engine.commands.execute(Deposit("a1", 500), id="cmd-1")
    print(await engine.projections.get(balances, "a1"))       # Balance(500)
    await engine.projections.wait_for(ledger, done.positions[-1])
    print(await engine.projections.fetch(ledger, "SELECT sum(cents) AS cents FROM {ledger}"))

"""The suite that every storage backend passes: the port's promises as tests.

A backend's test module makes a class of it and says how to open a store::

    class TestMine(StorageConformance):
        @pytest.fixture
        def new_storage(self, tmp_path: Path) -> Callable[[], Storage]:
            return lambda: MyStorage(tmp_path / "store")

A store made twice in one test must be the same one, if the backend keeps anything beyond its object.
"""

from event_workflow_engine.testing.conformance.appending import AppendCases
from event_workflow_engine.testing.conformance.claiming import ClaimCases
from event_workflow_engine.testing.conformance.committing import CommitCases
from event_workflow_engine.testing.conformance.exclusive import ExclusiveCases
from event_workflow_engine.testing.conformance.folding import FoldCases
from event_workflow_engine.testing.conformance.holding import HoldCases
from event_workflow_engine.testing.conformance.living import LifecycleCases
from event_workflow_engine.testing.conformance.querying import QueryCases
from event_workflow_engine.testing.conformance.queueing import QueueCases
from event_workflow_engine.testing.conformance.reading import ReadCases
from event_workflow_engine.testing.conformance.repeating import RepeatCases
from event_workflow_engine.testing.conformance.rows import RowCases
from event_workflow_engine.testing.conformance.transacting import TransactCases

__all__ = ["StorageConformance"]


class StorageConformance(
    AppendCases,
    RepeatCases,
    RowCases,
    CommitCases,
    ReadCases,
    QueryCases,
    QueueCases,
    ClaimCases,
    ExclusiveCases,
    TransactCases,
    FoldCases,
    HoldCases,
    LifecycleCases,
):
    """All cases; subclass it and override the fixture `new_storage`."""

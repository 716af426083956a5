"""The pytest plugin of rqlab: the fixture `rq`, queues in virtual time for the tests of an application.

A package of its own, because pytest imports plugins at its start, in every project where rqlab is installed: this one
costs nothing until a test asks for `rq`.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from rqlab.testing import VirtualQueues


@pytest.fixture
def rq() -> "Iterator[VirtualQueues]":
    """Queues whose time passes only when the test says so; `rqlab.open` returns them too (see `rqlab.testing`)."""
    from rqlab import testing

    with testing.queues() as queues:
        yield queues

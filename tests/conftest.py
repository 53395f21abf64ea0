"""Fixtures that the tests of several folders share."""

import pytest
from slimfront.workloads.digits import digits
from slimfront.workloads.workload import Workload


@pytest.fixture(scope="session")
def digits_workload() -> Workload:
    """The `digits` workload, from the user's own cache: its model is trained once per machine. Copy before changing."""
    return digits(progress=False)

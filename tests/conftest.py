"""Settings and fixtures that every test shares."""

from collections.abc import Iterator

import pytest
import torch
from hypothesis import HealthCheck, settings

from saefast.ops.cpu import native

settings.register_profile(
    "saefast",
    deadline=None,
    derandomize=True,
    max_examples=60,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
settings.load_profile("saefast")


@pytest.fixture(params=native.usable_levels())
def level(request: pytest.FixtureRequest) -> Iterator[str]:
    """Every instruction set this processor can run, in turn."""
    before = native.level()
    native.use_level(request.param)
    yield request.param
    native.use_level(before)


@pytest.fixture
def torch_threads() -> Iterator[None]:
    """Restores the number of threads that a test sets."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)

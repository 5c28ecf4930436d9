import pytest
from tiny import SIZES

from mmfuse import scaling


@pytest.fixture
def tiny_sizes(monkeypatch):
    """Makes the sizes of `tiny` known by their names."""
    for name, size in SIZES.items():
        monkeypatch.setitem(scaling.PUBLISHED, name, size)

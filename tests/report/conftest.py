import pytest
from made_up import comparison_of_three


@pytest.fixture
def comparison():
    return comparison_of_three()

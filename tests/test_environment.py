import datetime

import torch

from mmfuse.environment import environment


def test_a_result_says_versions_hardware_and_date():
    found = environment(torch.device("cpu"), 2)
    assert torch.__version__.startswith(found.versions["torch"])
    assert "CPU" in found.hardware
    assert found.processes == 2
    datetime.date.fromisoformat(found.date)

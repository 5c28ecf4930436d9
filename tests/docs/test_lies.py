import runpy
from pathlib import Path

from mmfuse.evaluation.corruptions import CORRUPTIONS

SCRIPT = Path(__file__).parents[2] / "docs" / "make_lies.py"


def test_the_picture_of_what_lies_cost_has_every_line_of_the_table():
    rows = runpy.run_path(str(SCRIPT))["rows"]()
    assert len(rows) == 62
    assert {fault for fault, *_ in rows} < {c.name for c in CORRUPTIONS}
    for _, sensor, severity, mean, least, greatest in rows:
        assert sensor in ("rgb", "thermal")
        assert severity in (3, 5)
        assert least <= mean <= greatest

import pytest

from mmfuse.report.plots import Line, Scale, around_zero, chart


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1]),
        (0, 0.43, [0, 0.1, 0.2, 0.3, 0.4]),
        (-0.03, 0.12, [0, 0.05, 0.1]),
        (0, 5, [0, 1, 2, 3, 4, 5]),
        (1, 16, [5, 10, 15]),
        (0, 2, [0, 0.5, 1, 1.5, 2]),
    ],
)
def test_ticks_are_few_and_round(low, high, ticks):
    assert Scale(low, high).ticks == pytest.approx(ticks)


def test_intervals_lie_on_one_scale_that_holds_zero():
    scale = around_zero([(0.1, 0.2), (0.05, 0.3)])
    assert 0 < scale(0) < scale(0.05) < scale(0.3) < 100
    assert scale(0.15) - scale(0) == pytest.approx(scale(0.3) - scale(0.15), abs=0.02)
    assert around_zero([])(0) == 50


def test_a_chart_holds_its_points_and_says_what_it_shows():
    lines = [Line("rgb", 0, [(0, 0.5), (5, 0.25)]), Line("none", 1, [])]
    drawn = chart("noise", "severity", "AP", lines)
    assert [line.name for line in drawn.lines] == ["rgb"]
    assert drawn.path(drawn.lines[0]) == "M36,8L292,87"
    assert drawn.words == "noise: AP over severity; rgb from 0.5 to 0.25"
    higher = chart("noise", "severity", "AP", lines, top=1.0)
    assert higher.path(higher.lines[0]) == "M36,87L292,126.5"


def test_a_chart_of_one_point_or_of_zeros_can_be_drawn():
    for points in ([(1, 0.3)], [(0, 0.0), (1, 0.0)]):
        drawn = chart("one", "x", "y", [Line("a", 0, points)])
        assert "nan" not in drawn.path(drawn.lines[0])
        assert drawn.y_scale.ticks[0] == 0

"""What is told of a split that changed."""

from dataclasses import replace

import pytest

from mmfuse.data.annotations.cards import load_card
from mmfuse.data.annotations.changes import differences, traces
from mmfuse.data.annotations.readers import read_split


@pytest.fixture
def split(paired_set):
    card = load_card(paired_set)
    return card, read_split(card, "train")


def changed(record, **values):
    return replace(record, **values)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda r: r[4:], "4 images are gone, such as {0}"),
        (lambda r: [changed(r[0], boxes=r[0].boxes + 1), *r[1:]], "in 1 images boxes moved, such as {0}"),
        (lambda r: [changed(one, labels=one.labels + 1) for one in r], "in 8 images classes changed, such as {0}"),
        (
            lambda r: [*r[:2], changed(r[2], boxes=r[2].boxes[1:], labels=r[2].labels[1:]), *r[3:]],
            "in 1 images objects were added or left out, such as {2}",
        ),
        (lambda r: [changed(one, ignore=~one.ignore) for one in r], "in 8 images details changed, such as {0}"),
        (
            lambda r: [changed(r[0], files={**r[0].files, "thermal": r[1].files["thermal"]}), *r[1:]],
            "in 1 images files are others, such as {0}",
        ),
        (lambda r: r[::-1], "its images come in another order, or lie in other folders"),
    ],
)
def test_each_kind_of_change_is_named_with_an_example(split, change, told):
    card, records = split
    before, names = traces(records, card.root), sorted(traces(records, card.root))
    assert differences(before, traces(change(records), card.root)) == [told.format(*names)]


def test_what_was_added_and_what_is_gone_are_told_apart(split):
    card, records = split
    before, after = traces(records[1:6], card.root), traces(records[:4], card.root)
    assert [line.split(",")[0] for line in differences(before, after)] == ["2 images are gone", "1 images were added"]


def test_what_is_kept_does_not_hang_on_the_place_of_the_data(split, tmp_path):
    card, records = split
    moved = [
        replace(r, files={m: tmp_path / file.relative_to(card.root) for m, file in r.files.items()}) for r in records
    ]
    assert traces(moved, tmp_path) == traces(records, card.root)

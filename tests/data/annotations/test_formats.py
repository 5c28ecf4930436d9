import math

import numpy as np
import pytest
from pycocotools import mask

from mmfuse.data.annotations import formats
from mmfuse.errors import UserError

SIZE = (100, 50)


def voc(*objects, head=""):
    return f"{head}<annotation><size><width>9</width></size>{''.join(objects)}</annotation>".encode()


def thing(name, inner, more=""):
    return f"<object><name>{name}</name>{more}{inner}</object>"


BOX = "<bndbox><xmin>1</xmin><ymin>2.5</ymin><xmax> 30 </xmax><ymax>40</ymax></bndbox>"


def seen(annotations):
    return [(m.label, m.box, m.ignore, m.occlusion, m.where) for m in annotations]


def test_pascal_voc_has_corners_and_difficult_objects():
    part = f"<part><name>head</name>{BOX}</part>"
    annotations = formats.pascal_voc(
        voc(thing("car", BOX), thing(" dog ", BOX, f"<difficult>1</difficult>{part}")), SIZE
    )
    assert seen(annotations) == [
        ("car", (1, 2.5, 30, 40), False, None, "object 1"),
        ("dog", (1, 2.5, 30, 40), True, None, "object 2"),
    ]


def test_a_polygon_gives_the_box_around_it():
    corners = {"x1": 5, "y1": 9, "x2": 20, "y2": 3, "x3": 25, "y3": 12, "x4": 8, "y4": 18}
    polygon = "".join(f"<{k}>{v}</{k}>" for k, v in corners.items())
    (annotation,) = formats.pascal_voc(voc(thing("bus", f"<polygon>{polygon}</polygon>")), SIZE)
    assert annotation.box == (5, 3, 25, 18)


@pytest.mark.parametrize("inner", ["", "<bndbox/>", BOX.replace("1", "x", 1).replace("30", ""), "<polygon/>"])
def test_a_box_that_is_no_numbers_is_not_a_number(inner):
    (annotation,) = formats.pascal_voc(voc(thing("car", inner)), SIZE)
    assert any(math.isnan(v) for v in annotation.box)


BOMB = '<!DOCTYPE a [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;&a;">]>'
EXTERNAL = '<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]>'


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (voc(thing("&b;", BOX), head=BOMB), "declares the document type 'a'"),
        (voc(thing("&x;", BOX), head=EXTERNAL), "declares the document type 'a'"),
        (voc(head='<!DOCTYPE annotation SYSTEM "http://127.0.0.1/x.dtd">'), "declares the document type 'annotation'"),
        (voc(thing("&b;", BOX)), "is not XML: undefined entity"),
        (voc(thing("car", BOX))[:-20], "is not XML"),
        (b"", "is not XML: no element found"),
        (b"\xff\xfe\x00garbage", "is not XML"),
        (voc(thing("caf\xe9", BOX)).decode().encode("latin-1"), "is not XML"),
        (b"<html></html>", "is no Pascal VOC annotation but <html>"),
        (b'<?xml version="1.0" encoding="klingon"?><annotation/>', "is not XML"),
    ],
)
def test_xml_that_is_broken_or_could_harm_is_refused(content, message):
    with pytest.raises(UserError) as raised:
        list(formats.pascal_voc(content, SIZE))
    assert message in str(raised.value)
    assert "\n" not in str(raised.value)


def test_bbgt_has_a_header_and_occlusion():
    text = b"% bbGt version=3\nperson 10 20 30 40 1 0 0 0 0 0 0\r\n\nperson? 1 2 3 4\n"
    assert seen(formats.bbgt(text, SIZE)) == [
        ("person", (10, 20, 40, 60), False, 1, "line 2"),
        ("person?", (1, 2, 4, 6), False, -1, "line 4"),
    ]
    assert list(formats.bbgt(b"% bbGt version=3\n", SIZE)) == []
    for wrong in (b"person 1 2 3 4 0", b"", b"% bbGt version=2\n"):
        with pytest.raises(UserError, match="bbGt version=3"):
            list(formats.bbgt(wrong, SIZE))


def test_yolo_is_in_parts_of_the_image():
    assert seen(formats.yolo(b"\xef\xbb\xbf3 0.5 0.5 0.2 0.4\n", SIZE)) == [
        ("3", (40, 15, 60, 35), False, None, "line 1"),
    ]
    (polygon,) = formats.yolo(b"3 0.1 0.1 0.2 0.2 0.3 0.1", SIZE)
    np.testing.assert_allclose(polygon.box, [10, 5, 30, 10])
    for wrong in (b"3 0.1 0.1 0.2 0.2 0.3", b"3 0.1 0.1 0.2 0.2 0.3 x", b"3 0.1 0.1 0.2 0.2 0.3 0.1 0.4"):
        assert all(math.isnan(one.box[0]) for one in formats.yolo(wrong, SIZE))


def test_kitti_has_corners_and_occlusion():
    text = b"Car 0.00 2 -0.20 7.5 10.0 80.5 30.25 1.89 0.48 1.20 1.84 1.47 8.41 0.01\nCar 0.00 0 -0.20 7 1"
    car, short = formats.kitti(text, SIZE)
    assert (car.label, car.box, car.occlusion) == ("Car", (7.5, 10, 80.5, 30.25), 2)
    assert math.isnan(short.box[0])


def test_vedai_gives_the_box_around_the_corners():
    (annotation,) = formats.vedai(b"20.5 15 0.78 11 1 0 10 30 28 12 8 10 22 20", SIZE)
    assert (annotation.label, annotation.box, annotation.occlusion) == ("11", (10, 8, 30, 22), 0)


def test_centres_may_be_parted_by_any_blanks():
    (annotation,) = formats.centred(b"  50  25   20  10  1  0\n", SIZE)
    assert (annotation.label, annotation.box) == ("1", (40, 20, 60, 30))


@pytest.mark.parametrize("parse", [formats.bbgt, formats.yolo, formats.kitti, formats.vedai, formats.centred])
def test_text_of_another_encoding_is_refused(parse):
    with pytest.raises(UserError, match=r"is not UTF-8 text \(byte 1\)"):
        list(parse(b"\x80\xff 1 2 3 4".replace(b"\x80", b"a"), SIZE))


@pytest.mark.parametrize("seed", range(5))
def test_the_text_of_run_lengths_is_read_as_pycocotools_does(seed):
    rng = np.random.default_rng(seed)
    pixels = np.asfortranarray(rng.random((rng.integers(1, 90), rng.integers(1, 90))) < 0.02 * 9**seed, np.uint8)
    encoded = mask.encode(pixels)
    x, y, w, h = mask.toBbox(encoded)
    assert formats.mask_bounds({"size": [*pixels.shape], "counts": encoded["counts"].decode()}) == (x, y, x + w, y + h)


@pytest.mark.parametrize(
    ("size", "counts"),
    [
        ([2, 2], "o"),  # a number that goes on after the end
        ([2, 2], "é"),
        ([2, 2], "o" * 99),
        ([2, 2], [1, 2]),  # fewer pixels than there are
        ([2, 2], [-1, 5]),
        ([2, 2], [1, 1.5, 1.5]),
        ([0, 0], [0, 0]),
        ([2**20, 2**20], [2**30, 2**30]),
        ([2], [2]),
        ("22", [4]),
        ([2, 2], None),
    ],
)
def test_run_lengths_that_are_no_mask_have_no_box(size, counts):
    assert all(math.isnan(v) for v in formats.mask_bounds({"size": size, "counts": counts}))

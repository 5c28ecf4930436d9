import pickle
import struct
import zlib
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from mmfuse.data.annotations.layout import image_size
from mmfuse.data.annotations.records import Objects, Record
from mmfuse.data.samples import load_sample
from mmfuse.errors import UserError
from mmfuse.images.decode import read_image
from mmfuse.sensor import Sensor

RGB = Sensor(3, mean=(10.4, 19.6, 30.0), std=(1.0, 1.0, 1.0))
GREY = Sensor(1, mean=(77.0,), std=(1.0,))
DEPTH = Sensor(1, "inverse_depth")
SENSORS = {"rgb": RGB, "thermal": GREY, "depth": DEPTH}


def save(path, array):
    Image.fromarray(np.asarray(array)).save(path)
    return path


def make_record(files, width=8, height=6, ignore=(False,)):
    count = len(ignore)
    boxes = np.tile(np.array([[1, 2, 5, 6]], np.float32), (count, 1))
    return Record(3, files, width, height, boxes, np.arange(count), np.array(ignore))


def test_8_and_16_bits_are_kept(tmp_path):
    rng = np.random.default_rng(0)
    colour = rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)
    counts = rng.integers(0, 65536, (6, 8), dtype=np.uint16)
    image = read_image(save(tmp_path / "a.png", colour), RGB)
    assert image.dtype == torch.uint8
    np.testing.assert_array_equal(image.numpy(), colour.transpose(2, 0, 1))
    for sensor in (GREY, DEPTH):
        image = read_image(save(tmp_path / "b.png", counts), sensor)
        assert image.dtype == torch.uint16
        np.testing.assert_array_equal(image.numpy()[0], counts)


def test_8_bit_grey_and_colour_become_what_the_sensor_has(tmp_path):
    grey = np.arange(48, dtype=np.uint8).reshape(6, 8)
    assert (read_image(save(tmp_path / "a.png", grey), RGB).numpy() == grey).all()
    assert (read_image(save(tmp_path / "b.png", np.stack([grey] * 3, 2)), GREY).numpy() == grey).all()


def test_orientation_is_applied(tmp_path):
    image = Image.fromarray(np.arange(48, dtype=np.uint8).reshape(6, 8))
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(tmp_path / "a.png", exif=exif)
    assert read_image(tmp_path / "a.png", GREY).shape == (1, 8, 6)


def test_unreadable_images_are_named(tmp_path):
    rng = np.random.default_rng(0)
    whole = save(tmp_path / "whole.png", rng.integers(0, 256, (60, 80, 3), dtype=np.uint8)).read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "empty.png").write_bytes(b"")
    for name in ("cut.png", "text.png", "empty.png", "missing.png"):
        with pytest.raises(UserError, match=name):
            read_image(tmp_path / name, RGB)


def test_other_channels_are_refused_where_turning_would_lose_the_values(tmp_path):
    deep = save(tmp_path / "deep.png", np.ones((6, 8), np.uint16))
    colour = save(tmp_path / "colour.png", np.ones((6, 8, 3), np.uint8))
    with pytest.raises(UserError, match=r"deep.png: has 1 channels; the sensor has 3"):
        read_image(deep, RGB)
    with pytest.raises(UserError, match=r"colour.png: has 3 channels; the sensor has 1"):
        read_image(colour, DEPTH)


def picture(height=60, width=80):
    rows, columns = np.mgrid[:height, :width]
    return np.stack((rows * 3 % 256, columns * 2 % 256, (rows + columns) % 256), 2).astype(np.uint8)


def error_of(path, sensor):
    with pytest.raises(UserError) as caught:
        read_image(path, sensor)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_a_jpeg_is_what_pil_makes_of_it(tmp_path, mode):
    Image.fromarray(picture()).convert(mode).save(tmp_path / "a.jpg", quality=90)
    with Image.open(tmp_path / "a.jpg") as file:
        colour, grey = np.array(file.convert("RGB")), np.array(file.convert("L"))
    for sensor, expected in ((RGB, colour.transpose(2, 0, 1)), (GREY, grey[None]), (Sensor(1, "clahe"), grey[None])):
        found = read_image(tmp_path / "a.jpg", sensor)
        assert found.dtype == torch.uint8
        np.testing.assert_allclose(found.numpy().astype(int), expected, atol=2)


def test_the_pages_of_a_tiff_are_its_channels_or_it_is_refused(tmp_path):
    bands = [Image.fromarray(picture(6, 8)[:, :, 0] + i) for i in range(5)]
    bands[0].save(tmp_path / "a.tiff", save_all=True, append_images=bands[1:])
    found = read_image(tmp_path / "a.tiff", Sensor(5))
    np.testing.assert_array_equal(found.numpy(), np.stack([np.asarray(band) for band in bands]))
    for sensor in (RGB, GREY, DEPTH):
        with pytest.raises(UserError, match=r"a.tiff: holds 5 pages; the sensor has . channels"):
            read_image(tmp_path / "a.tiff", sensor)
    bands[0].save(tmp_path / "b.tiff", save_all=True, append_images=[bands[1].resize((4, 3)), bands[2]])
    with pytest.raises(UserError, match=r"b.tiff: holds 3 pages"):
        read_image(tmp_path / "b.tiff", RGB)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("name", ["a.jpg", "a.png", "a.tiff"])
def test_any_orientation_is_applied(tmp_path, orientation, name):
    image = Image.fromarray(picture(16, 24)[:, :, 0])
    exif = image.getexif()
    exif[0x0112] = orientation
    image.save(tmp_path / name, exif=exif)
    image.save(tmp_path / f"plain_{name}")
    plain = read_image(tmp_path / f"plain_{name}", GREY).numpy()[0]
    turned = {
        1: plain, 2: plain[:, ::-1], 3: plain[::-1, ::-1], 4: plain[::-1],
        5: plain.T, 6: np.rot90(plain, -1), 7: np.rot90(plain, 2).T, 8: np.rot90(plain),
    }[orientation]  # fmt: skip
    np.testing.assert_array_equal(read_image(tmp_path / name, GREY).numpy()[0], turned)
    assert image_size(tmp_path / name) == turned.shape[::-1]


@pytest.mark.parametrize("sensor", [RGB, GREY])
def test_a_jpeg_that_is_cut_is_refused(tmp_path, sensor):
    Image.fromarray(picture(200, 300)).save(tmp_path / "whole.jpg", quality=95)
    whole = (tmp_path / "whole.jpg").read_bytes()
    for share in (0.1, 0.5, 0.9):
        (tmp_path / "cut.jpg").write_bytes(whole[: int(len(whole) * share)])
        error_of(tmp_path / "cut.jpg", sensor)


def test_other_ways_to_store_colour_are_turned_too(tmp_path):
    flat = np.zeros((8, 8, 3), np.uint8) + np.array([200, 100, 50], np.uint8)
    image, expected = Image.fromarray(flat), np.array([200, 100, 50])[:, None, None]
    image.convert("CMYK").save(tmp_path / "cmyk.jpg", quality=100)
    image.quantize(4).save(tmp_path / "palette.png")
    image.quantize(4).save(tmp_path / "clear.png", transparency=bytes([0, 255, 9, 7]))
    alpha = image.copy()
    alpha.putalpha(Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)))
    alpha.save(tmp_path / "alpha.png")
    for name in ("cmyk.jpg", "palette.png", "clear.png", "alpha.png"):
        np.testing.assert_allclose(read_image(tmp_path / name, RGB).numpy().astype(int), expected + 0 * flat.T, atol=3)
        np.testing.assert_allclose(read_image(tmp_path / name, GREY).numpy().astype(int), 124, atol=3)
    assert read_image(tmp_path / "alpha.png", Sensor(4)).numpy()[3].max() == 63
    assert "has a palette" in error_of(tmp_path / "palette.png", DEPTH)


def test_several_channels_of_16_bits_are_kept(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 2**16, (5, 7, 3), dtype=np.uint16)
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    chunks = ((b"IHDR", struct.pack(">IIBBBBB", 7, 5, 16, 2, 0, 0, 0)), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    content = b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + content)
    found = read_image(tmp_path / "a.png", Sensor(3, range=(0, 65535)))
    np.testing.assert_array_equal(found.numpy(), pixels.transpose(2, 0, 1))
    (tmp_path / "cut.png").write_bytes((b"\x89PNG\r\n\x1a\n" + content)[:-60])
    error_of(tmp_path / "cut.png", Sensor(3))


@pytest.mark.parametrize("limit", [30, 20])
@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.tiff"])
def test_too_many_pixels_are_refused_before_they_are_decoded(tmp_path, monkeypatch, limit, name):
    path = save(tmp_path / name, np.zeros((6, 8, 3), np.uint8))
    read_image(path, RGB)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    assert "pixels; give a smaller image" in error_of(path, RGB)


def test_the_border_is_cut(tmp_path):
    pixels = picture(6, 8)
    path = save(tmp_path / "a.png", pixels)
    found = read_image(path, Sensor(3, border=(1, 2, 3, 0)))
    np.testing.assert_array_equal(found.numpy(), pixels[2:, 1:5].transpose(2, 0, 1))
    for border in ((4, 0, 4, 0), (0, 9, 0, 0)):
        assert f"is 8 x 6, of which border {list(border)} leaves nothing" in error_of(path, Sensor(3, border=border))


def test_counts_are_undone(tmp_path):
    path = save(tmp_path / "a.png", np.array([[1, 8, 0x1234, 65535]], np.uint16))
    rotated = read_image(path, Sensor(1, "metres", counts="rotated"))
    assert rotated.dtype == torch.uint16
    assert rotated.tolist() == [[[8192, 1, 0x1234 >> 3 | (0x4 << 13 & 0xFFFF), 65535]]]
    swapped = read_image(path, Sensor(1, "metres", counts="swapped"))
    assert swapped.tolist() == [[[0x0100, 0x0800, 0x3412, 65535]]]
    shallow = save(tmp_path / "b.png", np.ones((2, 2), np.uint8))
    assert "holds uint8, but rotated counts have 16 bits" in error_of(shallow, Sensor(1, "metres", counts="rotated"))


def test_a_file_of_another_type_than_the_sensors_is_refused(tmp_path):
    paths = {
        "uint8": save(tmp_path / "a.png", np.ones((6, 8), np.uint8)),
        "uint16": save(tmp_path / "b.png", np.ones((6, 8), np.uint16)),
        "float32": save(tmp_path / "c.tiff", np.ones((6, 8), np.float32)),
    }
    for own, path in paths.items():
        assert str(read_image(path, Sensor(1, "metres", dtype=own)).dtype) == f"torch.{own}"
        for other in set(paths) - {own}:
            message = error_of(path, Sensor(1, "metres", dtype=other))
            assert f"holds {own}, but the sensor's files are {other}; give" in message


POINTS = Sensor(1, "metres", register="rig")


def test_points_are_read(tmp_path):
    points = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
    points.tofile(tmp_path / "a.bin")
    np.save(tmp_path / "b.npy", points.astype(np.float64))
    np.zeros((0, 4), np.float32).tofile(tmp_path / "none.bin")
    for name in ("a.bin", "b.npy"):
        found = read_image(tmp_path / name, POINTS)
        assert found.dtype == torch.float32
        np.testing.assert_array_equal(found.numpy(), points[:, :3])
    assert read_image(tmp_path / "none.bin", POINTS).shape == (0, 3)


def test_bad_points_are_refused(tmp_path):
    np.zeros((5, 4), np.float32).tofile(tmp_path / "a.bin")
    for sensor in (GREY, DEPTH, Sensor(1, register="rig")):
        assert "holds points; use a depth encoding" in error_of(tmp_path / "a.bin", sensor)
    (tmp_path / "cut.bin").write_bytes(bytes(4 * 7))
    np.save(tmp_path / "flat.npy", np.zeros(9))
    np.save(tmp_path / "narrow.npy", np.zeros((9, 2)))
    np.save(tmp_path / "objects.npy", np.array([{}, {}]), allow_pickle=True)
    (tmp_path / "pickled.npy").write_bytes(pickle.dumps([1.0]))
    (tmp_path / "cut.npy").write_bytes((tmp_path / "narrow.npy").read_bytes()[:-8])
    (tmp_path / "empty.npy").write_bytes(b"")
    for name in ("cut.bin", "flat.npy", "narrow.npy", "objects.npy", "pickled.npy", "cut.npy", "empty.npy", "no.bin"):
        error_of(tmp_path / name, POINTS)


def test_a_sample_leaves_out_crowds_and_absent_modalities(tmp_path):
    files = {"rgb": save(tmp_path / "a.png", np.ones((6, 8, 3), np.uint8))}
    sample = load_sample(make_record(files, ignore=(False, True, False)), SENSORS)
    assert set(sample.images) == {"rgb"}
    assert sample.labels.tolist() == [0, 2]
    assert sample.boxes.shape == (2, 4)


def test_a_sample_has_what_was_labelled_on_the_images_of_each_modality(tmp_path):
    image = save(tmp_path / "rgb.png", np.zeros((6, 8, 3), np.uint8))
    large = save(tmp_path / "t.png", np.zeros((12, 16), np.uint16))
    own = Objects(
        np.array([[2, 4, 6, 8], [0, 0, 4, 4]], np.float32), np.array([5, 6]), np.array([0, 1], bool), (16, 12)
    )
    record = replace(make_record({"rgb": image, "thermal": large}), objects_of={"thermal": own, "depth": own})
    sample = load_sample(record, {"rgb": RGB, "thermal": replace(GREY, register="resize"), "depth": DEPTH})
    assert sample.own.keys() == {"thermal"}
    boxes, labels = sample.own["thermal"]
    assert boxes.tolist() == [[1, 2, 3, 4]]
    assert labels.tolist() == [5]


def test_images_of_different_size_are_refused(tmp_path):
    rgb = save(tmp_path / "a.png", np.ones((6, 8, 3), np.uint8))
    wide = save(tmp_path / "b.png", np.ones((6, 9), np.uint8))
    with pytest.raises(UserError, match=r"a.png is 8 x 6, .*b.png is 9 x 6"):
        load_sample(make_record({"rgb": rgb, "thermal": wide}), SENSORS)
    with pytest.raises(UserError, match=r"b.png: is 9 x 6, but image 3 is labelled as 8 x 6"):
        load_sample(make_record({"thermal": wide}), SENSORS)
    with pytest.raises(UserError, match="no file for any of depth"):
        load_sample(make_record({"rgb": rgb}), {"depth": DEPTH})

import io
import warnings
from contextlib import suppress

import numpy as np
import pytest
from PIL import Image, ImageOps
from tiff_files import tiff

from mmfuse.data.annotations.layout import image_size
from mmfuse.errors import UserError
from mmfuse.images.decode import read_image
from mmfuse.images.tiff import bands_of, pages_of
from mmfuse.sensor import Sensor

HEIGHT, WIDTH = 21, 37


def drawn(kind, bands=1, low=0, high=200):
    return np.random.default_rng(0).integers(low, high, (HEIGHT, WIDTH, bands)).astype(kind)


def read(folder, content, channels):
    path = folder / "a.tif"
    path.write_bytes(content)
    image = read_image(path, Sensor(channels))
    assert image_size(path) == (image.shape[2], image.shape[1])
    return image.permute(1, 2, 0).numpy()


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("planes", [False, True])
@pytest.mark.parametrize("bands", [1, 2, 3, 4, 5, 10])
@pytest.mark.parametrize("kind", ["u1", "u2", "i2", "u4", "i4", "f2", "f4", "f8"])
def test_all_bands_of_any_number_and_kind_are_read(tmp_path, kind, bands, planes, order):
    pixels = drawn(kind, bands)
    found = read(tmp_path, tiff(pixels, planes=planes, order=order, photometric=2 if bands == 3 else 1), bands)
    np.testing.assert_array_equal(found, pixels)
    assert str(found.dtype) == {"u1": "uint8", "f2": "float32", "f4": "float32", "f8": "float32"}.get(kind, "uint16")


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize(("kind", "highest"), [("u1", 255), ("u2", 65535)])
@pytest.mark.parametrize("bands", [1, 5])
def test_white_as_the_lowest_value_is_turned_round(tmp_path, kind, highest, bands, order):
    pixels = drawn(kind, bands)
    found = read(tmp_path, tiff(pixels, photometric=0, order=order), bands)
    np.testing.assert_array_equal(found, highest - pixels)


@pytest.mark.parametrize("kind", ["i2", "f4"])
def test_white_as_the_lowest_of_numbers_without_a_highest_is_refused(tmp_path, kind):
    with pytest.raises(UserError, match="white is the lowest of its values"):
        read(tmp_path, tiff(drawn(kind), photometric=0), 1)


@pytest.mark.parametrize("kind", ["i1", "i2", "i4", "i8"])
def test_negative_numbers_are_refused(tmp_path, kind):
    with pytest.raises(UserError, match="holds values outside 0 to 65535"):
        read(tmp_path, tiff(drawn(kind, low=-9)), 1)


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("planes", [False, True])
@pytest.mark.parametrize("tile", [(16, 16), (32, 16), (48, 32)])
def test_tiles_are_put_together(tmp_path, tile, planes, order):
    pixels = drawn("u2", 5, high=60000)
    found = read(tmp_path, tiff(pixels, tile=tile, planes=planes, order=order, deflate=True), 5)
    np.testing.assert_array_equal(found, pixels)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize(("kind", "bands"), [("u1", 3), ("u2", 1), ("u2", 5)])
def test_any_orientation_is_applied_as_pillow_does(tmp_path, orientation, kind, bands):
    pixels = drawn(kind, bands)
    photometric = 2 if bands == 3 else 1
    found = read(tmp_path, tiff(pixels, photometric=photometric, more={274: (3, [orientation])}), bands)
    exif = Image.Exif()
    exif[274] = orientation
    for band in range(bands):
        plane = io.BytesIO()
        Image.fromarray(pixels[:, :, band].astype(np.uint8)).save(plane, "PNG", exif=exif)
        with Image.open(plane) as file:
            np.testing.assert_array_equal(found[:, :, band], np.array(ImageOps.exif_transpose(file)))


@pytest.mark.parametrize("compression", ["tiff_lzw", "tiff_adobe_deflate", "packbits"])
@pytest.mark.parametrize(("mode", "predictor"), [("RGB", 1), ("RGB", 2), ("I;16", 2), ("F", 1), ("F", 3)])
def test_what_is_packed_is_what_pillow_reads(compression, mode, predictor):
    pixels = {"RGB": drawn("u1", 3), "I;16": drawn("u2", high=60000)[..., 0]}.get(mode, drawn("f4")[..., 0] / 7)
    content = io.BytesIO()
    tags = {317: predictor} if predictor > 1 and compression != "packbits" else {}
    Image.fromarray(pixels).save(content, "TIFF", compression=compression, tiffinfo=tags, strip_size=300)
    (page,) = pages_of(content)
    assert len(page.offsets) > 3
    np.testing.assert_array_equal(bands_of(content.getvalue(), page).squeeze(), pixels)


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("kind", ["u2", "i2", "f4"])
def test_differences_are_of_the_bits_of_numbers(tmp_path, kind, order):
    pixels = drawn(kind, 5)
    bits = pixels.view(f"u{kind[1]}")
    differences = np.diff(bits, axis=1, prepend=np.zeros_like(bits[:, :1])).view(kind)
    packed = tiff(differences, order=order, deflate=True, more={317: (3, [2])})
    np.testing.assert_array_equal(read(tmp_path, packed, 5), pixels)
    np.testing.assert_array_equal(read(tmp_path, tiff(pixels, order=order, more={317: (3, [2])}), 5), pixels)


@pytest.mark.parametrize("planes", [False, True])
@pytest.mark.parametrize(("kind", "bands"), [("u1", 2), ("u1", 4), ("u2", 2), ("u2", 4), ("u2", 6)])
def test_opacity_is_left_out_and_any_other_band_is_not(tmp_path, kind, bands, planes):
    pixels = drawn(kind, bands)
    photometric = 2 if bands == 4 else 1
    with_alpha = tiff(pixels, photometric=photometric, planes=planes, alpha=1)
    np.testing.assert_array_equal(read(tmp_path, with_alpha, bands - 1), pixels[..., :-1])
    with pytest.raises(UserError, match=f"has {bands} channels; the sensor has {bands - 1}"):
        read(tmp_path, tiff(pixels, photometric=photometric, planes=planes), bands - 1)


def test_smaller_copies_are_no_channels(tmp_path):
    pages = [Image.fromarray(drawn("u1")[..., 0]), Image.fromarray(drawn("u1")[::2, ::2, 0])]
    pages[1].encoderinfo = {"tiffinfo": {254: 1}}
    pages[0].save(tmp_path / "a.tif", save_all=True, append_images=pages[1:])
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif", Sensor(1))[0], drawn("u1")[..., 0])


@pytest.mark.parametrize("change", [{262: (3, [5])}, {339: (3, [4] * 5)}, {259: (3, [7])}, {258: (3, [16] * 4 + [8])}])
def test_what_cannot_be_read_is_told_by_what_it_is(tmp_path, change):
    content = tiff(drawn("u2", 5), more=change)
    with pytest.raises(UserError, match=r"a.tif: is a TIFF of 5 bands of 16 bits \(.*\), which can't be read"):
        read(tmp_path, content, 5)


@pytest.mark.parametrize("deflate", [False, True])
@pytest.mark.parametrize("seed", range(40))
def test_a_damaged_file_is_one_line(tmp_path, seed, deflate):
    rng = np.random.default_rng(seed)
    content = bytearray(tiff(drawn("u2", 5), tile=(16, 16), planes=bool(seed % 2), deflate=deflate))
    if seed % 3:
        content[rng.integers(len(content) - 220, len(content) - 4)] = rng.integers(256)
    else:
        del content[rng.integers(len(content) // 2) :]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with suppress(UserError):
            read(tmp_path, bytes(content), 5)

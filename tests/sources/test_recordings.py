import io

import numpy as np
import pytest
from PIL import Image

from mmfuse.errors import UserError
from mmfuse.sources.recordings import BagScenes

pytest.importorskip("rosbags")
from rosbags.rosbag2 import Writer
from rosbags.typesys import Stores, get_typestore

STORE = get_typestore(Stores.LATEST)
TYPES = STORE.types
RGB, THERMAL = "/camera/image", "/thermal/image"


def header(time):
    stamp = TYPES["builtin_interfaces/msg/Time"](sec=int(time), nanosec=round(time % 1 * 1e9))
    return TYPES["std_msgs/msg/Header"](stamp=stamp, frame_id="x")


def image(time, pixels, encoding, padding=0):
    rows = np.ascontiguousarray(pixels).view(np.uint8).reshape(len(pixels), -1)
    rows = np.pad(rows, ((0, 0), (0, padding)))
    return TYPES["sensor_msgs/msg/Image"](
        header=header(time), height=len(pixels), width=pixels.shape[1], encoding=encoding,
        is_bigendian=0, step=rows.shape[1], data=rows.reshape(-1),
    )  # fmt: skip


def compressed(time, pixels):
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "PNG")
    data = np.frombuffer(content.getvalue(), np.uint8)
    return TYPES["sensor_msgs/msg/CompressedImage"](header=header(time), format="png", data=data)


def bag(path, messages):
    """Writes (topic, time of recording, message); bytes are written as they are."""
    with Writer(path, version=8) as writer:
        connections = {}
        for topic, recorded, message in messages:
            kind = "sensor_msgs/msg/Image" if isinstance(message, bytes) else message.__msgtype__
            if topic not in connections:
                connections[topic] = writer.add_connection(topic, kind, typestore=STORE)
            content = message if isinstance(message, bytes) else STORE.serialize_cdr(message, kind)
            writer.write(connections[topic], round(recorded * 1e9), content)
    return path


def grey(level, kind=np.uint8):
    return np.full((4, 6), level, kind)


def test_topics_are_paired_by_their_stamps(tmp_path):
    colour = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)
    path = bag(
        tmp_path / "bag",
        [
            (RGB, 50, image(10.00, colour, "rgb8", padding=5)),
            (THERMAL, 50, image(10.02, grey(1000, np.uint16), "mono16")),
            (RGB, 51, image(10.10, colour[..., ::-1].copy(), "bgr8")),
            (RGB, 52, image(10.20, colour, "rgb8")),
            (THERMAL, 53, image(10.21, grey(3000, np.uint16), "16UC1")),
        ],
    )
    scenes = BagScenes(path, {"rgb": RGB, "thermal": THERMAL}, 0.05)
    assert scenes.length == 3
    for _ in range(2):  # iterating begins anew
        found = list(scenes)
        assert [s.name for s in found] == ["10.000000", "10.100000", "10.200000"]
        assert all((s.images["rgb"] == colour).all() for s in found)
        thermal = [int(s.images["thermal"][0, 0]) if "thermal" in s.images else None for s in found]
        assert thermal == [1000, None, 3000]


def test_compressed_and_float_images_and_messages_without_a_stamp(tmp_path):
    depth = np.linspace(0.5, 9, 24, dtype=np.float32).reshape(4, 6)
    messages = [(RGB, 7.5, compressed(0, grey(9))), (THERMAL, 7.5, image(0, depth, "32FC1"))]
    (scene,) = BagScenes(bag(tmp_path / "bag", messages), {"rgb": RGB, "depth": THERMAL}, 0.05)
    assert scene.name == "7.500000"
    assert (scene.images["rgb"] == 9).all()
    np.testing.assert_array_equal(scene.images["depth"], depth)


def test_a_damaged_message_is_counted_and_gone_past(tmp_path):
    messages = [
        (RGB, 1, image(1, grey(1), "mono8")),
        (RGB, 2, image(2, grey(2), "yuv422")),  # not an encoding that is known
        (RGB, 3, b"\x00\x01\x00\x00no message"),
        (RGB, 4, image(4, grey(4), "mono8")),
    ]
    scenes = BagScenes(bag(tmp_path / "bag", messages), {"rgb": RGB}, 0.05)
    assert [s.name for s in scenes] == ["1.000000", "4.000000"]
    assert scenes.broken == {"rgb": 2}


def test_what_is_no_bag_or_topic_is_one_line(tmp_path):
    path = bag(tmp_path / "bag", [(RGB, 1, image(1, grey(1), "mono8"))])
    with pytest.raises(UserError, match=r"bag: rgb: '/camera/imag' is not a known topic of images; .*'/camera/image'"):
        BagScenes(path, {"rgb": "/camera/imag"}, 0.05)
    (tmp_path / "x.bag").write_text("no bag")
    for wrong in ("x.bag", "absent.bag", "absent"):
        with pytest.raises(UserError, match=rf"{wrong}: can't be opened as a bag \(.*\); check the path"):
            BagScenes(tmp_path / wrong, {"rgb": RGB}, 0.05)


def test_bags_of_ros_1_are_read_too(tmp_path):
    from rosbags.rosbag1 import Writer as OldWriter

    store = get_typestore(Stores.ROS1_NOETIC)
    types = store.types
    with OldWriter(tmp_path / "x.bag") as writer:
        connection = writer.add_connection(RGB, "sensor_msgs/msg/Image", typestore=store)
        for n in range(3):
            stamp = types["builtin_interfaces/msg/Time"](sec=5 + n, nanosec=0)
            message = types["sensor_msgs/msg/Image"](
                header=types["std_msgs/msg/Header"](seq=n, stamp=stamp, frame_id="x"), height=4, width=6,
                encoding="mono8", is_bigendian=0, step=6, data=grey(n).reshape(-1),
            )  # fmt: skip
            writer.write(connection, n, store.serialize_ros1(message, "sensor_msgs/msg/Image"))
    scenes = BagScenes(tmp_path / "x.bag", {"rgb": RGB}, 0.05)
    assert [(s.name, int(s.images["rgb"][0, 0])) for s in scenes] == [(f"{5 + n}.000000", n) for n in range(3)]

import os

import numpy as np
import pytest

from mmfuse.errors import UserError
from mmfuse.sources.videos import VideoScenes

av = pytest.importorskip("av")
CHANNELS = {"rgb": 3, "thermal": 1}


def video(path, count, fps=10, deep=False, codec="ffv1", value=10):
    """A lossless video whose frame n is of the value n * `value`, in 16 bits 1000 times that."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=fps)
        stream.width, stream.height = 64, 48
        stream.pix_fmt = "gray16le" if deep else "bgr0" if codec == "ffv1" else "yuvj420p"
        for n in range(count):
            level = n * value * (1000 if deep else 1)
            kind, shape = (np.uint16, (48, 64)) if deep else (np.uint8, (48, 64, 3))
            frame = av.VideoFrame.from_ndarray(np.full(shape, level, kind), "gray16le" if deep else "rgb24")
            container.mux(stream.encode(frame.reformat(format=stream.pix_fmt)))
        container.mux(stream.encode())
    return path


def levels(scene):
    return {m: int(x.reshape(-1)[0]) for m, x in scene.images.items()}


def test_frames_come_in_their_own_depth_and_channels(tmp_path):
    both = {"rgb": video(tmp_path / "a.mkv", 4), "thermal": video(tmp_path / "b.mkv", 4, deep=True, value=1)}
    scenes = list(VideoScenes(both, CHANNELS, 0.05))
    assert [levels(s) for s in scenes] == [{"rgb": 10 * n, "thermal": 1000 * n} for n in range(4)]
    assert scenes[0].images["rgb"].shape == (48, 64, 3)
    assert (scenes[0].images["thermal"].shape, scenes[0].images["thermal"].dtype) == ((48, 64), np.uint16)
    assert [s.name for s in scenes] == [f"a-{n:06d}" for n in range(4)]
    assert [s.image_id for s in scenes] == [1, 2, 3, 4]


def test_another_frame_rate_is_paired_by_time(tmp_path):
    both = {"rgb": video(tmp_path / "a.mkv", 6, 10), "thermal": video(tmp_path / "b.mkv", 3, 5)}
    seen = [levels(s).get("thermal") for s in VideoScenes(both, CHANNELS, 0.05)]
    assert seen == [0, None, 10, None, 20, None]
    seen = [levels(s).get("thermal") for s in VideoScenes(both, CHANNELS, 0.11)]
    assert seen == [0, 0, 10, 10, 20, 20]


def test_a_video_that_ends_early_lacks_from_then_on(tmp_path):
    both = {"rgb": video(tmp_path / "a.mkv", 5), "thermal": video(tmp_path / "b.mkv", 2)}
    assert [sorted(s.images) for s in VideoScenes(both, CHANNELS, 0.05)] == [["rgb", "thermal"]] * 2 + [["rgb"]] * 3
    whole = (tmp_path / "a.mkv").read_bytes()
    (tmp_path / "cut.mkv").write_bytes(whole[: len(whole) * 2 // 3])
    cut = VideoScenes({"rgb": tmp_path / "cut.mkv"}, CHANNELS, 0.05)
    assert 0 < len(list(cut)) < 5


def test_a_broken_frame_is_counted_and_gone_past(tmp_path):
    path = video(tmp_path / "a.avi", 9, codec="mjpeg")
    content = bytearray(path.read_bytes())
    frames = [i for i in range(len(content) - 3) if content[i : i + 3] == b"\xff\xd8\xff"]
    assert len(frames) == 9
    content[frames[4] : frames[5] - 8] = bytes(frames[5] - 8 - frames[4])
    path.write_bytes(content)
    scenes = VideoScenes({"rgb": path}, CHANNELS, 0.05)
    assert len(list(scenes)) == 8
    assert scenes.broken == {"rgb": 1}


def test_what_is_no_video_is_one_line(tmp_path):
    (tmp_path / "text.mp4").write_text("no video")
    with pytest.raises(UserError, match=r"rgb: .*text.mp4: can't be opened as a video \(.*\); check the path"):
        VideoScenes({"rgb": tmp_path / "text.mp4"}, CHANNELS, 0.05)
    with pytest.raises(UserError, match=r"absent.mp4: can't be opened as a video \(No such file"):
        VideoScenes({"rgb": tmp_path / "absent.mp4"}, CHANNELS, 0.05)
    with pytest.raises(UserError, match=r"rgb: camera:77: can't be opened as a video"):
        VideoScenes({"rgb": "camera:77"}, CHANNELS, 0.05)
    os.mkfifo(tmp_path / "pipe.mp4")
    with pytest.raises(UserError, match=r"pipe.mp4: can't be opened as a video \(Not a regular file"):
        VideoScenes({"rgb": tmp_path / "pipe.mp4"}, CHANNELS, 0.05)
    with av.open(str(tmp_path / "sound.wav"), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
        frame.rate = 8000
        container.mux(stream.encode(frame))
    with pytest.raises(UserError, match=r"sound.wav: holds no video; give a file that does"):
        VideoScenes({"rgb": tmp_path / "sound.wav"}, CHANNELS, 0.05)

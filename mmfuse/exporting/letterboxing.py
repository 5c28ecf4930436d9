"""The resizing rule as ONNX: raw images of any size to the size of the network, and boxes back."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from mmfuse.exporting.header import CONTENT, PRESENT, outside, pixel_type
from mmfuse.sensor import Sensor

FOUND = "boxes_fitted"
"""Name of the network's boxes, in pixels of its input."""

_KINDS = {"uint8": "UINT8", "uint16": "UINT16", "float32": "FLOAT"}
_FRAME = """
    letterbox_shape = Shape <start = 2> ({reference})
    letterbox_pixels = Cast <to = 11> (letterbox_shape)
    letterbox_size = Constant <value = double[2] {{{height}, {width}}}> ()
    letterbox_ratios = Div (letterbox_size, letterbox_pixels)
    letterbox_scale = ReduceMin <keepdims = 1> (letterbox_ratios)
    letterbox_exact = Mul (letterbox_pixels, letterbox_scale)
    letterbox_rounded = Round (letterbox_exact)
    letterbox_whole = Cast <to = 7> (letterbox_rounded)
    letterbox_one = Constant <value = int64[1] {{1}}> ()
    letterbox_shown = Max (letterbox_whole, letterbox_one)
    letterbox_measured = Cast <to = 1> (letterbox_exact)
    letterbox_nothing = Constant <value = float[1] {{0.0}}> ()
    letterbox_known = Greater (content, letterbox_nothing)
    letterbox_content = Where (letterbox_known, content, letterbox_measured)
    letterbox_batch = Shape <start = 0, end = 1> ({reference})
    letterbox_two = Constant <value = int64[1] {{2}}> ()
    letterbox_rows = Concat <axis = 0> (letterbox_batch, letterbox_two)
    contents = Expand (letterbox_content, letterbox_rows)
    letterbox_both = Constant <value = int64[2] {{{height}, {width}}}> ()
    letterbox_lacking = Sub (letterbox_both, letterbox_shown)
    letterbox_none = Constant <value = int64[6] {{0, 0, 0, 0, 0, 0}}> ()
    letterbox_pads = Concat <axis = 0> (letterbox_none, letterbox_lacking)
    letterbox_zero = Constant <value = int64 {{0}}> ()
    letterbox_step = Constant <value = int64 {{1}}> ()
    letterbox_height = Constant <value = int64 {{{height}}}> ()
    letterbox_width = Constant <value = int64 {{{width}}}> ()
    letterbox_y = Range (letterbox_zero, letterbox_height, letterbox_step)
    letterbox_x = Range (letterbox_zero, letterbox_width, letterbox_step)
    letterbox_first, letterbox_second = Split <num_outputs = 2> (letterbox_shown)
    letterbox_above = Less (letterbox_y, letterbox_first)
    letterbox_column = Unsqueeze (letterbox_above, letterbox_one)
    letterbox_left = Less (letterbox_x, letterbox_second)
    letterbox_inside = And (letterbox_column, letterbox_left)
"""
_GAPS = """
    {m}_nan = IsNaN ({source})
    {m}_nans = Cast <to = 6> ({m}_nan)
    {m}_axes = Constant <value = int64[3] {{1, 2, 3}}> ()
    {m}_any = {reduce} <keepdims = 1> ({m}_nans, {m}_axes)
    {m}_kept = Cast <to = 9> ({m}_any)
    {m}_filled = Where ({m}_nan, {m}_fill, {source})
    {m}_whole = Where ({m}_kept, {source}, {m}_filled)
"""
_MIXED = """
    {m}_leading_{to} = Shape <start = 0, end = 2> ({source})
    {m}_sizes_{to} = Concat <axis = 0> ({m}_leading_{to}, {size})
    {made} = Resize <mode = "linear", antialias = 1, exclude_outside = 1> ({source}, , , {m}_sizes_{to})
"""
_NEAREST = """
    {m}_from_{to} = Shape <start = 2> ({source})
    {m}_fh_{to}, {m}_fw_{to} = Split <num_outputs = 2> ({m}_from_{to})
    {m}_th_{to}, {m}_tw_{to} = Split <num_outputs = 2> ({size})
    {m}_ths_{to} = Squeeze ({m}_th_{to})
    {m}_tws_{to} = Squeeze ({m}_tw_{to})
    {m}_ry_{to} = Range (letterbox_zero, {m}_ths_{to}, letterbox_step)
    {m}_rx_{to} = Range (letterbox_zero, {m}_tws_{to}, letterbox_step)
    {m}_ry2_{to} = Mul ({m}_ry_{to}, letterbox_two)
    {m}_rx2_{to} = Mul ({m}_rx_{to}, letterbox_two)
    {m}_ry3_{to} = Add ({m}_ry2_{to}, letterbox_one)
    {m}_rx3_{to} = Add ({m}_rx2_{to}, letterbox_one)
    {m}_ry4_{to} = Mul ({m}_ry3_{to}, {m}_fh_{to})
    {m}_rx4_{to} = Mul ({m}_rx3_{to}, {m}_fw_{to})
    {m}_th2_{to} = Mul ({m}_th_{to}, letterbox_two)
    {m}_tw2_{to} = Mul ({m}_tw_{to}, letterbox_two)
    {m}_iy_{to} = Div ({m}_ry4_{to}, {m}_th2_{to})
    {m}_ix_{to} = Div ({m}_rx4_{to}, {m}_tw2_{to})
    {m}_gy_{to} = Gather <axis = 2> ({source}, {m}_iy_{to})
    {made} = Gather <axis = 3> ({m}_gy_{to}, {m}_ix_{to})
"""
_PADDED = """
    {m}_padded = Pad ({source}, letterbox_pads)
    {m}_fitted = Where (letterbox_inside, {m}_padded, {m}_fill)
"""
_BACK = """
    letterbox_factor = Cast <to = 1> (letterbox_scale)
    boxes = Div (boxes_fitted, letterbox_factor)
"""


def with_letterbox(model: Any, sensors: Mapping[str, Sensor], size: tuple[int, int], batch: int) -> Any:
    """Returns a network (onnx.ModelProto), whose inputs are letterboxed, as one that takes images as sensors give them.

    It does what `images.letterbox` does: the images of all sensors are of one size, but for those with register
    "resize", which are brought to that of the others first. The input `content`, which may be left out, is the height
    and width of what isn't padding in images that were letterboxed before.
    """
    import onnx

    front, back = (onnx.parser.parse_graph(f"g () => () {{{text}}}").node for text in (_front(sensors, size), _BACK))
    names = {f"image{i}": m for i, m in enumerate(sensors)}
    for node in front:
        for place, name in enumerate(node.input):
            node.input[place] = names.get(name, name)
    made = onnx.ModelProto()
    made.CopyFrom(model)
    nodes = list(made.graph.node)
    del made.graph.node[:]
    made.graph.node.extend([*front, *nodes, *back])
    given = {one.name: one for one in made.graph.input}
    del made.graph.input[:]
    for m, sensor in sensors.items():
        sides = [f"{m}_height", f"{m}_width"] if sensor.register == "resize" else ["height", "width"]
        kind = getattr(onnx.TensorProto, _KINDS[pixel_type(sensor)])
        shape = [batch or "batch", sensor.prepared_channels if outside(sensor) else sensor.channels, *sides]
        made.graph.input.append(onnx.helper.make_tensor_value_info(m, kind, shape))
    made.graph.input.extend(one for name, one in given.items() if name.startswith(PRESENT))
    made.graph.input.append(onnx.helper.make_tensor_value_info(CONTENT, onnx.TensorProto.FLOAT, [2]))
    made.graph.initializer.append(onnx.helper.make_tensor(CONTENT, onnx.TensorProto.FLOAT, [2], [0.0, 0.0]))
    for one in made.graph.output:
        if one.name == FOUND:
            one.name = "boxes"
    return made


def _front(sensors: Mapping[str, Sensor], size: tuple[int, int]) -> str:
    """Returns the nodes that turn each sensor's image into the network's input."""
    reference = next((f"image{i}" for i, s in enumerate(sensors.values()) if s.register != "resize"), "image0")
    parts = [_FRAME.format(reference=reference, height=size[0], width=size[1])]
    for i, sensor in enumerate(sensors.values()):
        m, kind = f"image{i}", pixel_type(sensor)
        fill = torch.tensor(sensor.fill)
        fill = fill if kind == "float32" else fill.round()
        values = ", ".join(str(int(v)) if kind == "uint8" else repr(v) for v in fill.tolist())
        parts.append(
            f"\n    {m}_fill = Constant <value = {'uint8' if kind == 'uint8' else 'float'}"
            f"[1, {len(fill)}, 1, 1] {{{values}}}> ()"
        )
        source = m
        if kind == "uint16":
            parts.append(f"\n    {m}_float = Cast <to = 1> ({m})")
            source = f"{m}_float"
        if sensor.register == "resize" and m != reference:
            parts.append(_resized(m, sensor, source, "frame", "letterbox_shape", kind))
            source = f"{m}_frame"
        if kind == "float32" and not sensor.is_depth:
            known = sensor.register in ("none", "resize") and not sensor.gaps
            reduce = "ReduceMax" if known else "ReduceMin"
            parts.append(_GAPS.format(m=m, source=source, reduce=reduce))
            source = f"{m}_whole"
        parts.append(_resized(m, sensor, source, "shown", "letterbox_shown", kind))
        parts.append(_PADDED.format(m=m, source=f"{m}_shown"))
    return "".join(parts)


def _resized(m: str, sensor: Sensor, source: str, to: str, size: str, kind: str) -> str:
    """Returns the nodes that do what `images.resizing.resized` does."""
    made = f"{m}_{to}"
    if sensor.interpolation == "nearest":
        return _NEAREST.format(m=m, source=source, to=to, size=size, made=made)
    if kind != "uint16":
        return _MIXED.format(m=m, source=source, to=to, size=size, made=made)
    mixed = _MIXED.format(m=m, source=source, to=to, size=size, made=f"{made}_mixed")
    return f"{mixed}\n    {made} = Round ({made}_mixed)"


def inputs_of(sensors: Sequence[str]) -> list[str]:
    """Returns the names of the network's own inputs, in order."""
    return [*(f"image{i}_fitted" for i in range(len(sensors))), *(PRESENT + m for m in sensors), "contents"]

"""An ONNX file in 8 bits: its convolutions as Q/DQ, with a scale for each channel of their weights."""

import logging
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from mmfuse.exporting.header import JUDGED

_LAST = ".predict."
"""In the names of the weights of the heads' last convolutions."""


def quantised(content: bytes, feeds: Iterable[Mapping[str, np.ndarray]]) -> Any:
    """Returns a network (onnx.ModelProto) whose convolutions take and give uint8 and have weights of int8.

    The range of each map is what it is from least to most in `feeds`, inputs of the network. In float32 stay all other
    nodes, the last convolutions of the heads, and those that what is thought of the sensors depends on: doubt measures
    how a backbone's features are spread, and takes rounded ones for those of another sensor.
    """
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.feeds = iter(feeds)

        def get_next(self) -> Mapping[str, np.ndarray] | None:
            return next(self.feeds, None)

    model = onnx.load_model_from_string(content)
    kept = _before(model, JUDGED)
    convolutions = [node for node in model.graph.node if node.op_type == "Conv"]
    chosen = [node.name for node in convolutions if node.name not in kept and _LAST not in node.input[1]]
    with tempfile.TemporaryDirectory() as folder, _quiet():
        out = Path(folder) / "int8.onnx"
        quantize_static(
            model,
            out,
            Reader(),
            quant_format=QuantFormat.QDQ,
            nodes_to_quantize=chosen,
            op_types_to_quantize=["Conv"],
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
        return onnx.load(out)


@contextmanager
def _quiet() -> Iterator[None]:
    """Keeps away what the quantiser logs for those who call it."""
    import onnxruntime

    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    onnxruntime.set_default_logger_severity(3)
    try:
        yield
    finally:
        logging.disable(before)
        onnxruntime.set_default_logger_severity(2)


def _before(model: Any, outputs: Iterable[str]) -> set[str]:
    """Returns the names of the nodes that outputs of a network depend on."""
    made = {name: node for node in model.graph.node for name in node.output}
    left, found = [*outputs], set()
    while left:
        node = made.get(left.pop())
        if node is not None and node.name not in found:
            found.add(node.name)
            left.extend(node.input)
    return found

"""A traced network as an ONNX file."""

from typing import Any

from torch.export import ExportedProgram

from mmfuse.errors import UserError
from mmfuse.exporting.graph import quiet
from mmfuse.exporting.header import KEY, OUTPUTS, Header
from mmfuse.exporting.letterboxing import FOUND, inputs_of, with_letterbox
from mmfuse.exporting.standard import translations

OPSET = 20


def to_onnx(program: ExportedProgram, header: Header) -> Any:
    """Returns a traced network as an onnx.ModelProto that takes images as `header` says.

    Raises:
        UserError: onnx or onnxscript isn't installed.
    """
    try:
        import onnx
        import onnxscript  # noqa: F401
        import torch.onnx
    except ImportError as error:
        raise UserError(f"export: {error.name} isn't installed; run pip install 'mmfuse[export]'") from None
    with quiet():
        made = torch.onnx.export(
            program,
            input_names=inputs_of(tuple(header.sensors)),
            output_names=[FOUND, *OUTPUTS[1:]],
            opset_version=OPSET,
            custom_translation_table=translations(),
            optimize=False,  # takes half of the time, and runtimes do it again when they open the file
            verbose=False,
        )
    assert made is not None
    model = with_letterbox(made.model_proto, header.sensors, header.size, header.batch)
    _forget_lines(model.graph)
    onnx.checker.check_model(model)
    return model


def _forget_lines(graph: Any) -> None:
    """Leaves out which line of which file each node was traced from: a fifth of the file of a small detector."""
    for node in graph.node:
        del node.metadata_props[:]
        for attribute in node.attribute:
            _forget_lines(attribute.g)


def with_header(model: Any, header: Header) -> bytes:
    """Returns the content of a file of a network, which says of itself what `header` does."""
    told = {one.key: one for one in model.metadata_props}.get(KEY) or model.metadata_props.add()
    told.key, told.value = KEY, header.to_json()
    content: bytes = model.SerializeToString()
    return content

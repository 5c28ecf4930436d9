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
    told = model.metadata_props.add()
    told.key, told.value = KEY, header.to_json()
    onnx.checker.check_model(model)
    return model

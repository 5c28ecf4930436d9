"""A traced network as PyTorch's own archive, or compiled for this machine's processor."""

import io
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.export import ExportedProgram

from mmfuse.errors import UserError
from mmfuse.exporting.graph import quiet
from mmfuse.exporting.header import CONTENT, KEY, PRESENT, Header

_NAME = "detector.pt2"


def to_pt2(program: ExportedProgram, header: Header) -> bytes:
    """Returns a traced network as an archive for `torch.export.load`, in which nothing is pickled, and no path is told.

    What `header` says lies in it as an extra file.
    """
    buffer = io.BytesIO()
    program.example_inputs = None  # they would be pickled
    for part in program.graph_module.modules():
        for node in part.graph.nodes if isinstance(part, torch.fx.GraphModule) else ():
            node.meta.pop("stack_trace", None)
    with quiet():
        torch.export.save(program, buffer, extra_files={KEY: header.to_json()})
    return buffer.getvalue()


def check_compiler() -> None:
    """Refuses to compile where there is nothing to do it.

    Raises:
        UserError: there is no compiler of C++.
    """
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler:
        raise UserError("aot: needs a compiler of C++, and none is here; install g++, or leave --aot out") from None


def compiled(program: ExportedProgram, header: Header) -> bytes:
    """Returns a traced network as a package of AOTInductor, of machine code.

    What `header` says is in its metadata.
    """
    from torch._inductor import aoti_compile_and_package

    with tempfile.TemporaryDirectory() as folder, quiet():
        options = {"aot_inductor.metadata": {KEY: header.to_json()}}
        made = aoti_compile_and_package(program, package_path=str(Path(folder) / _NAME), inductor_configs=options)
        return Path(made).read_bytes()


def opened(content: bytes, aot: bool) -> Callable[[Mapping[str, np.ndarray]], Sequence[np.ndarray]]:
    """Returns what runs the content of a file that was made here, which may be trusted, on images that are fitted.

    It takes the inputs of the ONNX file, `content` among them.
    """
    with quiet():
        if aot:
            with tempfile.TemporaryDirectory() as folder:
                (Path(folder) / _NAME).write_bytes(content)
                run: Any = torch._inductor.aoti_load_package(str(Path(folder) / _NAME))
        else:
            run = torch.export.load(io.BytesIO(content)).module()

    def found(given: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        present = {n.removeprefix(PRESENT): torch.from_numpy(x) for n, x in given.items() if n.startswith(PRESENT)}
        images = {m: torch.from_numpy(given[m]) for m in present}
        images = {m: x if x.dtype == torch.uint8 else x.float() for m, x in images.items()}
        contents = torch.from_numpy(given[CONTENT]).repeat(len(next(iter(images.values()))), 1)
        with torch.inference_mode():
            return [x.numpy() for x in run(images, present, contents)]

    return found

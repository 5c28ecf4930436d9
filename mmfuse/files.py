"""Writes files whole or not at all."""

from pathlib import Path

from mmfuse.errors import UserError


def write_whole(path: Path, content: bytes) -> None:
    """Writes a file by way of a neighbour that is renamed, so that a good file is never replaced by half of one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.partial")
    try:
        partial.write_bytes(content)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def named_like(out: str | Path, *suffixes: str) -> Path:
    """Returns the path of a file to write.

    Raises:
        UserError: it is a folder, or doesn't end in one of the `suffixes`.
    """
    out = Path(out)
    if out.suffix not in suffixes or out.is_dir():
        raise UserError(f"out: {str(out)!r} is not a file name for this; end it in {' or '.join(suffixes)}")
    return out

"""Pickles without their danger: readers that build arrays and plain values, and nothing else."""

import io
import pickle
from pathlib import Path
from typing import Any

from runtime.errors import InputError
from runtime.files import atomic_write, refuse_pointer

# A pickle is a program, and these are the only functions it may call: those numpy itself uses to rebuild an array or a
# scalar (both module names: numpy 2 moved `core` to `_core`), and the one that protocol 2 uses for bytes.
_ALLOWED = {("numpy", "ndarray"), ("numpy", "dtype"), ("_codecs", "encode")} | {
    (f"numpy.{core}.{module}", name)
    for core in ("core", "_core")
    for module, name in (("multiarray", "_reconstruct"), ("multiarray", "scalar"), ("numeric", "_frombuffer"))
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if module.partition(".")[0] == "torch":
            raise pickle.UnpicklingError("it holds torch tensors; save numpy arrays: tensor.cpu().numpy()")
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"it asks for the global {module}.{name}, which data files have no use for")
        return super().find_class(module.replace("numpy.core.", "numpy._core."), name)

    def persistent_load(self, pid: Any) -> Any:
        raise pickle.UnpicklingError(f"it asks for the external object {pid!r}")


def load_pickle(path: Path | str) -> Any:
    """Reads a pickle that holds only numpy arrays, numbers, strings, bytes, dicts, lists, tuples and None.

    InputError for a damaged file, and one that asks for any other global, which has not been called by then.
    """
    try:
        refuse_pointer(path)
        data = Path(path).read_bytes()
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    try:
        value = _Unpickler(io.BytesIO(data)).load()
    # A damaged stream fails in whichever opcode it hits, and each opcode has its own exception.
    except (
        pickle.UnpicklingError, EOFError, ValueError, TypeError, LookupError, AttributeError, OverflowError,
        MemoryError, ImportError,
    ) as error:  # fmt: skip
        raise InputError(f"{path}: refused as a data pickle: {error or type(error).__name__}") from None
    _refuse_objects(value, path)
    return value


def _refuse_objects(value: Any, path: Path | str) -> None:
    """Object arrays could smuggle anything numpy can hold; a data file has none."""
    if hasattr(value, "dtype") and value.dtype.hasobject:
        raise InputError(f"{path}: refused as a data pickle: an array of Python objects")
    if isinstance(value, dict | list | tuple):
        for item in value.values() if isinstance(value, dict) else value:
            _refuse_objects(item, path)


def save_pickle(path: Path | str, value: Any) -> None:
    """Writes `value` atomically, with protocol 5 (the first that stores arrays without a copy)."""
    with atomic_write(path) as temporary, temporary.open("wb") as file:
        pickle.dump(value, file, protocol=5)

"""A GPU that is only pretended: shows what waits for one and what is left on the wrong device, where there is none.

    with PretendedGPU() as gpu:
        potential = potential.to(gpu.device)
        with gpu.watched() as waits:
            step(potential)
    print(waits)

Its tensors say that they are on ``cuda:0``, so code takes the branches that it takes there. Their numbers are computed
on the CPU, so results are real.

Noted are the waits that ``torch.cuda.set_sync_debug_mode`` would report: numbers that are read, copies to the host,
copies to the device from memory that is not page-locked (those of Python numbers and of lists in an index among them),
shapes that depend on numbers, and linear algebra that looks whether it has succeeded.
"""

from __future__ import annotations

import contextlib
import traceback
import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map

DEVICE = torch.device("cuda", 0)
# What PyTorch's own code sees: every build of it knows this device, on which there is nothing to be read by accident.
_INNER = torch.device("meta")
_CPU = torch.device("cpu")

aten = torch.ops.aten

#: Operations whose result goes to the CPU, or has a shape that depends on numbers. ``one_hot`` with a number of classes
#: is none: it looks at the numbers on a CPU only.
WAITING = frozenset(
    {
        aten._local_scalar_dense,
        aten.equal,
        aten.allclose,
        aten.nonzero,
        aten.bincount,
        aten.masked_select,
        aten.unique_dim,
        aten.unique_consecutive,
        aten._unique,
        aten._unique2,
        aten._linalg_check_errors,
        aten._linalg_eigh,
        aten._linalg_svd,
        aten.linalg_eig,
        aten.linalg_lstsq,
    }
)


class WrongDeviceError(RuntimeError):
    """Tensors of the GPU and of the CPU in one operation."""


@dataclass(frozen=True)
class Wait:
    """Something that makes the CPU wait for the GPU.

    Attributes
    ----------
    operation
        An operation of PyTorch, ``"to the host"``, ``"to the device"`` or ``"boolean index"``.
    culprit
        ``"file function"``: the innermost ones of the package, or of whoever calls PyTorch if none of the package runs.
    line
        ``"file:number: text"`` of the same place.
    """

    operation: str
    culprit: str
    line: str

    @property
    def name(self) -> str:
        """Culprit and operation."""
        return f"{self.culprit}: {self.operation}"

    def __str__(self) -> str:
        return f"{self.operation:24s} {self.line}"


@dataclass
class Waits:
    """All that waited while somebody watched; printed as a table of lines."""

    found: list[Wait] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.found)

    def __str__(self) -> str:
        lines = Counter(map(str, self.found))
        return "\n".join([f"{len(self)} waits", *(f"{count:4d} {line}" for line, count in lines.items())])

    def counts(self) -> dict[str, int]:
        """How often by the name of the wait."""
        return dict(Counter(wait.name for wait in self.found))

    def besides(self, others: Waits) -> Waits:
        """Those that are left when as many of each name are taken off as there are among the others."""
        left, rest = Counter(others.counts()), Waits()
        for wait in self.found:
            if left[wait.name] > 0:
                left[wait.name] -= 1
            else:
                rest.found.append(wait)
        return rest

    def beyond(self, allowed: Mapping[str, int]) -> str:
        """What there is more of than allowed by its name, with the lines; empty if there is nothing."""
        more = {name: count for name, count in self.counts().items() if count > allowed.get(name, 0)}
        lines = []
        for name, count in more.items():
            lines.append(f"{name}: {count}, allowed are {allowed.get(name, 0)}")
            lines += sorted({f"    {wait.line}" for wait in self.found if wait.name == name})
        return "\n".join(lines)


class PretendedTensor(Tensor):
    """A tensor of the pretended device; ``inner`` holds its numbers on the CPU."""

    inner: Tensor

    @staticmethod
    def __new__(cls, inner: Tensor) -> PretendedTensor:
        made: PretendedTensor = Tensor._make_wrapper_subclass(
            cls,
            inner.size(),
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            layout=inner.layout,
            device=_INNER,
        )
        made.inner = inner
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise RuntimeError(f"{func} on a tensor of a pretended GPU that is not there any more")

    @property
    def device(self) -> torch.device:
        return DEVICE

    @property
    def is_cuda(self) -> bool:
        return True

    @property
    def is_meta(self) -> bool:
        return False

    @property
    def data(self) -> Any:
        return Tensor.data.__get__(self)

    @data.setter
    def data(self, value: PretendedTensor) -> None:
        # As Module.double() gives a parameter other numbers.
        Tensor.data.__set__(self, value)
        self.inner = value.inner

    def __repr__(self, **_: Any) -> str:
        return f"PretendedTensor({self.inner})"

    def __format__(self, spec: str) -> str:
        return format(self.item(), spec) if self.dim() == 0 else object.__format__(self, spec)

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def numpy(self, **_: Any) -> Any:
        raise TypeError(f"can't convert {DEVICE} device type tensor to numpy. Use Tensor.cpu() first.")

    __array__ = numpy

    def new_tensor(self, data: Any, dtype: torch.dtype | None = None, **_: Any) -> Tensor:
        return torch.tensor(data, dtype=dtype or self.dtype).to(_INNER)

    def __getitem__(self, index: Any) -> Tensor:
        return super().__getitem__(_sent(index))

    def __setitem__(self, index: Any, value: Any) -> None:
        # A number is written as a tensor of the CPU, as PyTorch does where there is a GPU.
        written = value if isinstance(value, Tensor) else torch.tensor(value, dtype=self.dtype)
        super().__setitem__(_sent(index), written)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        if id(self) not in memo:
            copied: Any = self.detach().clone().requires_grad_(self.requires_grad)
            if getattr(self, "_is_param", False):
                copied._is_param = True
            memo[id(self)] = copied
        return memo[id(self)]


def _sent(index: Any) -> Any:
    """An index whose lists are tensors, as PyTorch sends them to the GPU."""
    if isinstance(index, tuple):
        return tuple(map(_sent, index))
    return torch.tensor(index).to(_INNER) if isinstance(index, list) else index


class PretendedGPU:
    """Within it there is a device ``cuda:0``.

    What is moved there or made there, and what is computed from it, is there. An operation on tensors of both devices
    raises a :class:`WrongDeviceError` that names the line. As PyTorch does, it lets pass numbers of the CPU (tensors
    without dimensions) in elementwise operations, and indices of the CPU, which are copied.

    Attributes
    ----------
    device
        The device.
    waits
        All that waited so far.
    """

    device = DEVICE

    def __init__(self) -> None:
        self.waits = Waits()
        self._watching = [self.waits]
        self._stack = contextlib.ExitStack()
        # By identity: tensors compare by their numbers.
        self._pinned: weakref.WeakValueDictionary[int, Tensor] = weakref.WeakValueDictionary()

    def __enter__(self) -> PretendedGPU:
        patched = mock.patch.object(torch.cuda, "get_device_name", return_value="a pretended GPU")
        for each in (patched, _functions_in_backward(), _Functions(), _Operations(self)):
            self._stack.enter_context(each)
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    @contextlib.contextmanager
    def watched(self) -> Iterator[Waits]:
        """What waits in a part of the program."""
        self._watching.append(Waits())
        try:
            yield self._watching[-1]
        finally:
            self._watching.pop()

    def note(self, operation: str) -> None:
        """Something waits here."""
        wait = Wait(operation, *_place())
        for waits in self._watching:
            waits.found.append(wait)

    def pin(self, value: Tensor) -> Tensor:
        """A copy in memory that is said to be page-locked."""
        copied = value.clone()
        self._pinned[id(copied)] = copied
        return copied

    def is_pinned(self, value: Tensor) -> bool:
        """Whether :meth:`pin` has made it."""
        return self._pinned.get(id(value)) is value


class _Functions(TorchFunctionMode):
    """Calls of PyTorch as they are written: the name of the device becomes one that it knows."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.device:
            return func(*args, **kwargs)
        args, kwargs = tuple(map(_inner_device, args)), {name: _inner_device(value) for name, value in kwargs.items()}
        if func in (torch.tensor, torch.as_tensor, torch.asarray):
            return _from_data(func, args, kwargs)
        return args[0].to(_INNER) if func is Tensor.cuda else func(*args, **kwargs)


def _inner_device(value: Any) -> Any:
    named = isinstance(value, torch.device) and value.type == DEVICE.type
    return _INNER if named or (isinstance(value, str) and value in ("cuda", "cuda:0")) else value


def _from_data(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """A tensor of Python's or numpy's numbers: it is put together on the CPU and copied."""
    device = kwargs.pop("device", None)
    if isinstance(args[0], PretendedTensor):
        wanted = {"dtype": kwargs.get("dtype"), "device": device}
        return args[0].to(**{name: value for name, value in wanted.items() if value is not None})
    made = func(*args, **kwargs)
    return made if device is None else made.to(device)


@contextlib.contextmanager
def _functions_in_backward() -> Iterator[None]:
    """Go on in Python code that a backward pass calls: PyTorch leaves the mode before."""
    run = torch.autograd._engine_run_backward

    def run_backward(*args: Any, **kwargs: Any) -> Any:
        with _Functions():
            return run(*args, **kwargs)

    with mock.patch.object(torch.autograd, "_engine_run_backward", run_backward):
        yield


class _Operations(TorchDispatchMode):
    """Operations of PyTorch as they are carried out."""

    def __init__(self, gpu: PretendedGPU) -> None:
        super().__init__()
        self._gpu = gpu

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func.overloadpacket is aten._pin_memory:
            return self._gpu.pin(args[0])
        tensors = [value for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor)]
        device = kwargs.get("device")
        arrives = any(map(_is_there, tensors)) if device is None else device.type == _INNER.type
        if not arrives and not any(map(_is_there, tensors)):
            return func(*args, **kwargs)
        _CHECKS.get(func.overloadpacket, _check_devices)(self._gpu, func, args, kwargs, tensors)
        if func.overloadpacket in WAITING:
            self._gpu.note(str(func.overloadpacket))
        inner = {name: tree_map(_opened, value) for name, value in kwargs.items()}
        result = func(*tree_map(_opened, args), **(inner if device is None else inner | {"device": _CPU}))
        if func.overloadpacket is aten.copy_:
            return args[0]
        return return_and_correct_aliasing(func, args, kwargs, tree_map(_closed, result)) if arrives else result


def _is_there(value: Any) -> bool:
    return isinstance(value, PretendedTensor)


def _opened(value: Any) -> Any:
    return value.inner if isinstance(value, PretendedTensor) else value


def _closed(value: Any) -> Any:
    return PretendedTensor(value) if isinstance(value, Tensor) and not _is_there(value) else value


def _check_devices(gpu: PretendedGPU, func: Any, args: Any, kwargs: Any, tensors: list[Tensor]) -> None:
    """All tensors are on the GPU, but for numbers that are read in elementwise operations."""
    numbers = torch.Tag.pointwise in func.tags or func.overloadpacket is aten.fill_
    written = [value for k, value in enumerate(args) if _is_written(func, k)]
    here = [value for value in tensors if not _is_there(value)]
    if any(map(_is_there, tensors)) and any(
        not numbers or value.dim() > 0 or any(value is other for other in written) for value in here
    ):
        raise _mixed(func, tensors)


def _is_written(func: Any, position: int) -> bool:
    alias = func._schema.arguments[position].alias_info
    return alias is not None and bool(alias.is_write)


def _mixed(func: Any, tensors: list[Tensor]) -> WrongDeviceError:
    devices = ", ".join(f"{tuple(value.shape)} on {value.device}" for value in tensors)
    return WrongDeviceError(f"{func} of tensors on different devices ({devices}) in {_place()[1]}")


def _note_copies(gpu: PretendedGPU, func: Any, args: Any, kwargs: Any, tensors: list[Tensor]) -> None:
    """Copies to the host wait; copies to the device do not if they are made in the background from pinned memory."""
    if func.overloadpacket is aten.copy_:
        arrives, source = _is_there(args[0]), args[1]
        background = args[2] if len(args) > 2 else kwargs.get("non_blocking", False)
    else:
        device, source, background = kwargs.get("device"), args[0], kwargs.get("non_blocking", False)
        arrives = _is_there(source) if device is None else device.type == _INNER.type
    if _is_there(source) and not arrives:
        gpu.note("to the host")
    elif arrives and not _is_there(source) and not (background and gpu.is_pinned(source)):
        gpu.note("to the device")


def _check_indexing(gpu: PretendedGPU, func: Any, args: Any, kwargs: Any, tensors: list[Tensor]) -> None:
    """Indices and numbers of the CPU are copied, and it has to be known how many rows a mask selects."""
    indices = [index for index in args[1] if index is not None]
    value = args[2] if len(args) > 2 else None
    number = isinstance(value, Tensor) and not _is_there(value) and value.dim() == 0
    if not _is_there(args[0]) or (isinstance(value, Tensor) and not _is_there(value) and not number):
        raise _mixed(func, tensors)
    masks = [index for index in indices if index.dtype in (torch.bool, torch.uint8)]
    if number and masks and len(indices) == 1 and not (len(args) > 3 and args[3]):
        return  # the same as masked_fill with a number
    for _ in range(number + sum(not _is_there(index) for index in indices)):
        gpu.note("to the device")
    if masks:
        gpu.note("boolean index")


def _note_repeats(gpu: PretendedGPU, func: Any, args: Any, kwargs: Any, tensors: list[Tensor]) -> None:
    """How long the result is has to be known."""
    _check_devices(gpu, func, args, kwargs, tensors)
    if kwargs.get("output_size") is None:
        gpu.note(str(func.overloadpacket))


_CHECKS: dict[Any, Callable[[PretendedGPU, Any, Any, Any, list[Tensor]], None]] = {
    aten._to_copy: _note_copies,
    aten.copy_: _note_copies,
    aten.index: _check_indexing,
    aten._unsafe_index: _check_indexing,
    aten.index_put: _check_indexing,
    aten.index_put_: _check_indexing,
    aten._index_put_impl_: _check_indexing,
    aten.repeat_interleave: _note_repeats,
}

_PACKAGE = Path(__file__).parent.parent / "ase_finetune"
_NOBODY = (str(Path(torch.__file__).parent), __file__, str(Path(contextlib.__file__).parent), "<")


def _place() -> tuple[str, str]:
    """The innermost function of the package that is running, and its line; of other code if there is none."""
    frames = traceback.extract_stack()
    own = [frame for frame in frames if frame.filename.startswith(str(_PACKAGE))]
    others = [frame for frame in frames if not frame.filename.startswith(_NOBODY)]
    within = own or others or frames
    path = Path(within[-1].filename)
    name = path.relative_to(_PACKAGE).as_posix() if own else path.name
    # Comprehensions have a frame of their own in some versions of Python.
    functions = [frame.name for frame in within if not frame.name.startswith("<")]
    return f"{name} {functions[-1] if functions else ''}", f"{name}:{within[-1].lineno}: {within[-1].line}"

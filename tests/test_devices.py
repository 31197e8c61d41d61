"""The pretended GPU sees what a real one would wait for, and nothing else."""

from __future__ import annotations

import copy
import re

import pytest
import torch
from torch import nn

from ase_finetune.continual import EWCPenalty, FisherInformation
from ase_finetune.finetuning.updating import Piece, PieceLoss, Updater
from ase_finetune.potentials.memory import EdgeBudget
from tests.devices import DEVICE, PretendedGPU, PretendedTensor, Waits, WrongDeviceError


@pytest.fixture
def gpu():
    with PretendedGPU() as pretended:
        yield pretended


@pytest.fixture
def x(gpu):
    """Six numbers there."""
    return torch.arange(6.0).reshape(2, 3).to(gpu.device)


READ, DOWN, UP = "aten._local_scalar_dense", "to the host", "to the device"
WAITING = {
    "item": (lambda x: x[0, 0].item(), READ),
    "float": (lambda x: float(x.sum()), READ),
    "bool": (lambda x: bool((x > 1).any()), READ),
    "if": (lambda x: 1 if x.isfinite().all() else 0, READ),
    "int": (lambda x: int(x.max()), READ),
    "format": (lambda x: f"{x[0, 1]:.3f}", READ),
    "equal": (lambda x: torch.equal(x, x), "aten.equal"),
    "allclose": (lambda x: torch.allclose(x, x), "aten.allclose"),
    "tolist": (lambda x: x.tolist(), DOWN),
    "cpu": (lambda x: x.cpu(), DOWN),
    "to": (lambda x: x.to("cpu"), DOWN),
    "to, background": (lambda x: x.to("cpu", non_blocking=True), DOWN),
    "copy into the host": (lambda x: torch.zeros(2, 3).copy_(x), DOWN),
    "nonzero": (lambda x: (x > 1).nonzero(), "aten.nonzero"),
    "where": (lambda x: torch.where(x > 1), "aten.nonzero"),
    "mask": (lambda x: x[x > 1], "boolean index"),
    "mask, first": (lambda x: x[x.sum(dim=1) > 1], "boolean index"),
    "writing tensors by a mask": (lambda x: x.clone().__setitem__(x > 4, x[0, :1]), "boolean index"),
    "masked_select": (lambda x: x.masked_select(x > 1), "aten.masked_select"),
    "unique": (lambda x: x.unique(), "aten._unique2"),
    "bincount": (lambda x: torch.bincount(x.long().reshape(-1), minlength=9), "aten.bincount"),
    "repeats": (lambda x: torch.repeat_interleave(x.long().reshape(-1)), "aten.repeat_interleave"),
    "repeats of rows": (lambda x: x.repeat_interleave(x[0].long()[:2], dim=0), "aten.repeat_interleave"),
    "list as index": (lambda x: x[:, [0, 2]], UP),
    "number written by index": (lambda x: x.clone().__setitem__(x[0].long()[:1], 0.0), UP),
    "host index": (lambda x: x[torch.tensor([0, 1])], UP),
    "new tensor": (lambda x: torch.tensor([1.0, 2.0], device=x.device), UP),
    "new tensor of its kind": (lambda x: x.new_tensor([1.0]), UP),
    "as tensor": (lambda x: torch.as_tensor([1.0], device=x.device), UP),
    "upload": (lambda x: torch.ones(3).to(x.device), UP),
    "upload, background": (lambda x: torch.ones(3).to(x.device, non_blocking=True), UP),
    "upload, pinned": (lambda x: torch.ones(3).pin_memory().to(x.device), UP),
    "cuda": (lambda _: torch.ones(3).cuda(), UP),
    "copy into the device": (lambda x: x.copy_(torch.ones(2, 3)), UP),
    "inverse": (lambda x: torch.linalg.inv(x[:, :2] + 1), "aten._linalg_check_errors"),
    "solve": (lambda x: torch.linalg.solve(x[:, :2] + 1, x), "aten._linalg_check_errors"),
    "eigenvalues": (lambda x: torch.linalg.eigh(x @ x.T), "aten._linalg_eigh"),
}


@pytest.mark.parametrize("name", WAITING)
def test_what_waits(gpu, x, name):
    action, operation = WAITING[name]
    with gpu.watched() as waits:
        action(x)
    found = {wait.operation for wait in waits.found}
    assert operation in found, str(waits)
    assert found <= {operation, UP}
    assert all(wait.culprit.startswith("test_devices.py ") for wait in waits.found)


FREE = {
    "arithmetic": lambda x: ((x + 1) * x / 2).sum(dim=0).sqrt() @ x.T,
    "numbers of the host": lambda x: x * torch.tensor(2.0) + torch.where(x > 1, x, torch.tensor(0.0)),
    "factories": lambda x: [torch.zeros(3, device=x.device), torch.eye(3, device="cuda"), x.new_zeros(2), x * 0],
    "arange": lambda x: torch.arange(3, device=x.device),
    "slices": lambda x: x[0, 1:] + x[:, None, 0][1],
    "index": lambda x: x[torch.zeros(4, dtype=torch.int64, device=x.device)],
    "index_add": lambda x: x.index_add(0, torch.zeros(1, dtype=torch.int64, device=x.device), x[:1]),
    "number by a mask": lambda x: x.clone().__setitem__(x > 1, 0.0),
    "number by a slice": lambda x: x.clone().__setitem__(0, 0.0),
    "masks that keep the shape": lambda x: x.masked_fill(x > 1, 0.0) + torch.where(x > 1, x, 0.0),
    "one_hot": lambda x: nn.functional.one_hot(x.long().reshape(-1), 7),
    "repeats of a known number": lambda x: torch.repeat_interleave(x.long().reshape(-1), output_size=15),
    "pinned upload": lambda x: torch.ones(3).pin_memory().to(x.device, non_blocking=True),
    "already there": lambda x: x.to(x.device).to("cuda"),
    "other type": lambda x: x.double().to(torch.float32),
    "shape": lambda x: [x.shape, len(x), x.numel(), x.dtype, x.is_floating_point(), x.device == DEVICE],
    "cross product": lambda x: torch.linalg.cross(x, x),
    "host alone": lambda _: [torch.ones(3).tolist(), torch.ones(3)[torch.ones(3) > 0], float(torch.ones(3).sum())],
}


@pytest.mark.parametrize("name", FREE)
def test_what_does_not_wait(gpu, x, name):
    with gpu.watched() as waits:
        FREE[name](x)
    assert not waits.found, str(waits)


MIXED = {
    "sum": lambda x, host: x + host,
    "product": lambda x, host: host @ x.T,
    "comparison": lambda x, host: torch.where(x > 0, x, host),
    "host number in a stack": lambda x, _: torch.stack([x.sum(), torch.tensor(1.0)]),
    "concatenation": lambda x, host: torch.cat([x, host]),
    "host index of a function": lambda x, _: x.index_select(0, torch.tensor([0])),
    "host rows": lambda x, _: x.index_add(0, torch.zeros(1, dtype=torch.int64), x[:1]),
    "in place": lambda x, host: x.add_(host),
    "into the host": lambda x, host: host.add_(x),
    "into a number of the host": lambda x, _: torch.tensor(1.0).add_(x[0, 0]),
    "host by an index that is there": lambda x, host: host[x[0].long()[:1]],
    "writing host rows by an index": lambda x, host: x.__setitem__(x[0].long()[:2], host),
    "list of tensors": lambda x, host: torch._foreach_add([x], [host]),
    "index that is there, wrong factory": lambda x, _: x[torch.zeros(2, 3) > 0] + x * torch.arange(3.0),
}


@pytest.mark.parametrize("name", MIXED)
def test_what_is_refused(x, name):
    with pytest.raises(WrongDeviceError, match=r"tensors on different devices .* in test_devices\.py:\d+: "):
        MIXED[name](x, torch.ones(2, 3))


def test_numbers_are_those_of_the_cpu(gpu):
    """Also those of gradients, views and operations in place."""

    def work(x):
        leaf = (x * 2).requires_grad_()
        y = (leaf[:, [2, 0]] ** 3).sum(dim=1)
        (gradient,) = torch.autograd.grad((y * y).sum(), leaf)
        rows = gradient.clone()
        rows[0].add_(1)
        rows[rows > 100] = 0.5
        return rows

    x = torch.arange(6.0).reshape(2, 3)
    assert torch.equal(work(x.to(gpu.device)).cpu(), work(x))


class _Constant(torch.autograd.Function):
    @staticmethod
    def forward(_, value):
        return value.clone()

    @staticmethod
    def backward(_, gradient):
        constant = torch.tensor([3.0, 4.0], device=gradient.device) + torch.eye(2, device=gradient.device)[0]
        return gradient * constant


def test_python_code_in_a_backward_pass(gpu):
    x = torch.ones(2, device=gpu.device, requires_grad=True)
    with gpu.watched() as waits:
        _Constant.apply(x).sum().backward()
    assert x.grad.tolist() == [4.0, 4.0]
    assert set(waits.counts()) == {"test_devices.py backward: to the device"}


def test_modules(gpu):
    module = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1)).double()
    reference, x = copy.deepcopy(module), torch.ones(4, 2, dtype=torch.float64)
    module = module.float().double().to(gpu.device)
    copied = copy.deepcopy(module)
    for each in (module, copied):
        assert all(isinstance(p, nn.Parameter) and p.device == DEVICE for p in each.parameters())
        optimizer = torch.optim.Adam(each.parameters())
        each(x.to(gpu.device)).sum().backward()
        optimizer.step()
    assert next(copied.parameters()) is not next(module.parameters())
    optimizer = torch.optim.Adam(reference.parameters())
    reference.float().double()(x).sum().backward()
    optimizer.step()
    for one, two in zip(module.to("cpu").parameters(), reference.parameters(), strict=True):
        assert not isinstance(one, PretendedTensor)
        torch.testing.assert_close(one, two, rtol=1e-12, atol=1e-12)


def test_numpy_is_refused(x):
    with pytest.raises(TypeError, match=r"can't convert cuda:0 device type tensor to numpy"):
        x.numpy()


def test_tensors_do_not_outlive_the_device():
    with PretendedGPU() as gpu:
        x = torch.ones(2, device=gpu.device)
    with pytest.raises(RuntimeError, match="that is not there any more"):
        x + 1
    assert not torch.ones(2).is_cuda


def test_the_culprit_is_the_innermost_line_of_the_package(gpu):
    """Whoever has called it, and whatever of PyTorch it has called."""
    theta = nn.Parameter(torch.ones(2, device=gpu.device))
    penalty = EWCPenalty([("theta", theta)], FisherInformation({"theta": torch.ones(2)}), 1.0)
    with gpu.watched() as waits:
        penalty.value()
    (wait,) = waits.found
    assert wait.culprit == "continual/ewc.py value"
    assert re.fullmatch(r"continual/ewc\.py:\d+: return 0\.5 \* float\(.*", wait.line)


def test_more_than_allowed(gpu, x):
    with gpu.watched() as waits:
        for _ in range(2):
            x.tolist()
        x.nonzero()
    down, rows = (f"test_devices.py test_more_than_allowed: {what}" for what in (DOWN, "aten.nonzero"))
    assert waits.counts() == {down: 2, rows: 1}
    assert waits.beyond({down: 2, rows: 5}) == ""
    assert waits.beyond({down: 1, rows: 1}).startswith(f"{down}: 2, allowed are 1\n    test_devices.py:")
    assert "x.nonzero()" in waits.beyond({down: 2})
    assert str(waits).startswith("3 waits\n   2 to the host")
    assert Waits().beyond({}) == ""


def test_what_is_watched_twice_is_noted_twice(gpu, x):
    before = len(gpu.waits)
    with gpu.watched() as outer, gpu.watched() as inner:
        x.tolist()
    x.tolist()
    assert (len(outer), len(inner), len(gpu.waits) - before) == (1, 1, 2)


@pytest.mark.parametrize("bad", [1.0, float("nan"), float("inf")])
def test_an_update_reads_once(gpu, bad):
    """Of a loss that is not finite, too, before its examples are looked at one by one."""
    theta = nn.Parameter(torch.tensor([1.0, -2.0], dtype=torch.float64).to(gpu.device))
    fisher = FisherInformation({"theta": torch.ones(2)})
    update = Updater(torch.optim.SGD([theta], lr=0.1), EWCPenalty([("theta", theta)], fisher, 1.0), 1.0).update
    piece = Piece([0], {0: 1}, lambda _: PieceLoss(bad * theta.square().sum(), lambda: None), EdgeBudget(1))
    with gpu.watched() as waits:
        if bad == 1.0:
            update([piece, piece])
        else:
            with pytest.raises(RuntimeError, match=f"the loss is {bad} because of example 0"):
                update([piece])
    own = {name: count for name, count in waits.counts().items() if "_not_finite" not in name}
    assert own == {"finetuning/updating.py update: to the host": 1}

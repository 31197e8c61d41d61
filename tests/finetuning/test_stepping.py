"""The moving average of the weights."""

from __future__ import annotations

import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from ase_finetune.finetuning.stepping import _MovingAverage
from tests import morse


def test_the_moving_average_is_that_of_torch():
    """Bit for bit, so that a run can be resumed that another version has begun."""
    potential, generator = morse.pretrained(), torch.Generator().manual_seed(0)
    ours, theirs = _MovingAverage(potential, 0.9), AveragedModel(potential, multi_avg_fn=get_ema_multi_avg_fn(0.9))
    for count in range(1, 5):
        with torch.no_grad():
            for parameter in potential.parameters():
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
            potential._index += 1
        ours.update(potential)
        theirs.update_parameters(potential)
        assert morse.same_weights(ours.potential, theirs.module)
        assert torch.equal(ours.potential._index, potential._index)
        assert ours.count == int(theirs.n_averaged) == count
        assert morse.same_weights(ours.potential, potential) == (count == 1)

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from ase.build import bulk

from ase_finetune import FinetuneConfig, FinetunedCalculator, Loss
from ase_finetune.analysis import evaluate_calculator
from ase_finetune.data import read_frames
from ase_finetune.finetuning.history import History
from ase_finetune.finetuning.relaxation_config import RelaxationConfig
from ase_finetune.representations import brief, counted, errors_table, html_table
from tests import morse


@dataclass
class Options:
    wanted: int
    name: str = "x"
    loss: Loss = field(default_factory=Loss)


def test_brief_is_the_call():
    assert brief(Options(3)) == "Options(wanted=3)"
    assert brief(Options(3, "y", Loss(kind="l1"))).startswith("Options(wanted=3, name='y', loss=Loss(kind='l1'")


@pytest.mark.parametrize(
    "config",
    [
        FinetuneConfig(),
        FinetuneConfig(epochs=3, freeze=["a"], bptt=RelaxationConfig(steps=4)),
        RelaxationConfig(steps=2),
    ],
)
def test_configs_evaluate_to_themselves(config):
    names = {"FinetuneConfig": FinetuneConfig, "RelaxationConfig": RelaxationConfig}
    assert eval(repr(config), names) == config  # noqa: S307  # our own text
    assert len(repr(config)) < 100


def test_config_in_a_notebook():
    html = FinetuneConfig(epochs=3)._repr_html_()
    assert '<tr style="font-weight:bold"><td>epochs</td><td>3</td></tr>' in html
    assert html.count("font-weight:bold") == 1
    assert "<td>ewc_lambda</td>" in html


def test_tables_escape():
    html = html_table("<t>", {"<a>": "<script>", "x": 1.23456789}, header=["<h>"])
    assert "<script>" not in html
    assert "&lt;script&gt;" in html
    assert "&lt;t&gt;" in html
    assert "<td>1.235</td>" in html


def test_calculator():
    calc = FinetunedCalculator(morse.pretrained(), device="cpu")
    assert repr(calc) == "FinetunedCalculator(model='a morse potential', device='cpu', dtype='float32')"
    html = calc._repr_html_()
    assert "<td>elements</td><td>2</td>" in html
    assert "Errors" not in html
    calc.metadata = {
        "base_model": "7net-0",
        "config": {"method": "ewc"},
        "errors": {"before": {"valid": {"loss": 1.0, "slope": None}}, "after": {"valid": {"loss": 0.5, "slope": None}}},
    }
    html = calc._repr_html_()
    assert "<td>fine-tuned from</td><td>7net-0</td>" in html
    assert "<td>valid</td><td>loss</td><td>1</td><td>0.5</td>" in html
    assert "slope" not in html


def test_repr_does_not_evaluate():
    """ASE prints the calculator of Atoms; that must not cost an evaluation."""
    atoms = bulk("Si")
    atoms.calc = FinetunedCalculator(morse.pretrained(), device="cpu")
    assert "FinetunedCalculator" in repr(atoms)
    assert not atoms.calc.results


def test_errors_without_any():
    assert errors_table({}) == ""


def test_history():
    history = History([{"epoch": 1, "a": 2.0}, {"epoch": 2, "b": 3.0}])
    html = history._repr_html_()
    assert "<th>epoch</th><th>a</th><th>b</th>" in html
    assert "<td>2</td><td></td><td>3</td>" in html
    assert history == [{"epoch": 1, "a": 2.0}, {"epoch": 2, "b": 3.0}]


def test_counts_in_words():
    assert [counted(number, "thread") for number in (0, 1, 2)] == ["0 threads", "1 thread", "2 threads"]


def test_evaluation():
    calc = FinetunedCalculator(morse.pretrained(), device="cpu")
    found = evaluate_calculator(calc, read_frames(morse.labelled(morse.silicon(3, 1)), name="mine"))
    assert str(found).splitlines()[-1].startswith("mine")
    assert f"<td>{found.raw.forces_mae:.4g}</td>" in found._repr_html_()

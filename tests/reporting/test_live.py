"""The picture of the epochs in a notebook, in a notebook."""

from __future__ import annotations

import math
from pathlib import Path

import matplotlib
import pytest

from ase_finetune.reporting import live

ROOT = Path(__file__).parents[2]

CODE = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from ase_finetune import finetune
from tests import morse
options = dict(replay=morse.oxide(6, 3), method="reewc", epochs=3, monitor_size=2, device="cpu")
calc = finetune(morse.pretrained(), morse.labelled(morse.silicon(8, 1)), 0.3, **options)
"""


def rows(count):
    return [
        {
            "stage": "frames",
            "epoch": k,
            "train_loss": 1.0,
            "valid_forces_mae": 9.0 - k,
            "replay_forces_mae": math.nan,
            "seconds": 1.0,
        }
        for k in range(count)
    ]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_in_a_notebook():
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    cells = [nbformat.v4.new_code_cell(text) for text in (CODE, "calc", "calc.history")]
    notebook = nbformat.v4.new_notebook(cells=cells)
    nbclient.NotebookClient(notebook, timeout=300, kernel_name="python3").execute()
    training, calculator, history = notebook.cells
    (picture,) = [item for item in training.outputs if item["output_type"] == "display_data"]
    html = picture["data"]["text/html"]
    assert html.count("data:image/png;base64,") == 4  # forces, energies, loss, forgetting
    assert "last epochs: frames" in html
    assert html.count("<tr>") == 1 + 4  # titles, epochs 0 to 3
    assert "FinetunedCalculator" in calculator.outputs[0]["data"]["text/html"]
    assert "valid_forces_mae" in history.outputs[0]["data"]["text/html"]


def test_not_in_a_notebook():
    assert not live.in_notebook()


def test_html_of_an_unfinished_stage():
    html = live.live_html(rows(4))
    assert "<th>valid forces, meV/Å</th>" in html
    assert "replay" not in html.split("<table>")[1]  # not known in this run
    assert "<td>9</td>" in html
    assert "<td>6</td>" in html
    assert html.count("<img") == 1


def test_long_runs_show_the_last_epochs():
    html = live.live_html(rows(100))
    assert html.count("<tr>") == 1 + 8
    assert "<td>99</td>" in html


def test_settings_of_others_do_not_matter():
    html = live.live_html(rows(4))
    with matplotlib.rc_context({"font.size": 31, "lines.linewidth": 9, "text.color": "red"}):
        assert live.live_html(rows(4)) == html


def test_nothing_yet():
    assert "no epoch" in live.live_html([])
    assert "<td>0</td>" in live.live_html(rows(1))

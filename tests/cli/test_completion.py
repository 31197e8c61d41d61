from __future__ import annotations

import shutil
import subprocess
import sys

import pytest

from ase_finetune.cli import main
from ase_finetune.cli.completion import completion_script
from ase_finetune.cli.parsing import SHELLS

pytest.importorskip("shtab")
BASH = shutil.which("bash")


@pytest.fixture(scope="module")
def script(tmp_path_factory):
    path = tmp_path_factory.mktemp("completion") / "ase-finetune.bash"
    path.write_text(completion_script("bash"))
    return path


def completed(script, folder, *words):
    """What bash offers for the last of the words."""
    line = f"""
source {script}
function=$(complete -p ase-finetune | sed 's/.*-F \\([^ ]*\\).*/\\1/')
COMP_WORDS=(ase-finetune {" ".join(f"'{word}'" for word in words)})
COMP_CWORD={len(words)}
$function ase-finetune "${{COMP_WORDS[-1]}}" "${{COMP_WORDS[-2]}}"
printf '%s\\n' "${{COMPREPLY[@]}}"
"""
    answer = subprocess.run([BASH, "-c", line], capture_output=True, text=True, cwd=folder, check=True)  # noqa: S603
    return {word.strip() for word in answer.stdout.splitlines() if word.strip()}


@pytest.mark.skipif(BASH is None, reason="needs bash")
def test_bash_completes(script, folder):
    assert subprocess.run([BASH, "-n", str(script)], check=False).returncode == 0  # noqa: S603
    assert completed(script, folder, "re") == {"relax", "report"}
    assert {"fit", "md", "doctor"} <= completed(script, folder, "")
    assert completed(script, folder, "relax", "--max") == {"--max_edges"}
    assert {"--method", "--bptt.steps", "--loss.kind"} <= completed(script, folder, "fit", "--")
    assert completed(script, folder, "fit", "m", "--method", "bptt+") == {"bptt+replay", "bptt+ewc", "bptt+reewc"}
    assert completed(script, folder, "relax", "m", "s", "--optimizer", "l") == {"lbfgs"}
    assert "7net-0" in completed(script, folder, "relax", "7net")
    assert "model" in completed(script, folder, "relax", "mod")
    assert "train.extxyz" in completed(script, folder, "fit", "7net-0", "tr")
    assert completed(script, folder, "relax", "m", "s", "--config", "val") == {"valid.extxyz"}


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize("spelling", ["--print-completion {}", "--print_completion={}"])
def test_a_script_for_every_shell(capsys, shell, spelling):
    with pytest.raises(SystemExit) as caught:
        main(spelling.format(shell).split())
    assert caught.value.code == 0
    told = capsys.readouterr().out
    assert "ase-finetune" in told
    assert "max_edges" in told


def test_without_shtab(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert main(["--print_completion", "bash"]) == 1
    assert capsys.readouterr().err == "ase-finetune: error: completion needs the package shtab: pip install shtab\n"

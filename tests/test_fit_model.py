"""scripts/fit_model: constants of the model from measured blockings."""

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from tvm_directconv import workloads
from tvm_directconv.candidates import candidates
from tvm_directconv.case import Case
from tvm_directconv.model import estimate
from tvm_directconv.tiling import Tiling


@pytest.fixture(scope="module")
def script() -> ModuleType:
    path = Path(__file__).parents[1] / "scripts/_fit_model.py"
    spec = importlib.util.spec_from_file_location("fit_model", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["fit_model"] = module
    spec.loader.exec_module(module)
    return module


def test_a_fit_finds_what_measurements_follow(script: ModuleType) -> None:
    """As if layers had been measured on a core that is as the model says, with other constants."""
    rows = []
    for layer in workloads("alexnet") + workloads("vgg16")[::3]:
        case = Case.of(layer, "haswell")
        true = replace(case.device.model, load_cost=0.2, visit_cycles=20.0)
        core = replace(case, device=replace(case.device, model=true))
        for blocking in list(candidates(case))[::97]:
            of_peak = estimate(Tiling(core, blocking)).of_peak
            rows.append(script.Measured(Tiling(case, blocking), of_peak))
    usual = rows[0].tiling.case.device.model
    before = np.square(script.residuals(rows, usual)).mean()
    fitted = script.fit(rows, usual, rounds=3)
    assert np.square(script.residuals(rows, fitted)).mean() < 0.05 * before
    assert fitted.load_cost > usual.load_cost and fitted.visit_cycles > usual.visit_cycles
    assert script.fit(rows, true, rounds=1) == true


def test_logs_that_say_nothing_are_refused(
    script: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.jsonl").write_text("")
    monkeypatch.setattr(sys, "argv", ["fit_model", str(tmp_path / "a.jsonl")])
    with pytest.raises(SystemExit):
        script.main()


def test_the_packages_logs_are_reported(
    script: ModuleType, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["fit_model", "--rounds", "0"])
    script.main()
    out = capsys.readouterr().out
    assert "| sapphirerapids, 1 | " in out and "the worst:" in out

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import update_cost
from benchmarks.results import section


def test_every_variant_of_this_device_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    networks = update_cost.networks

    def shorter(width: int) -> dict[str, update_cost.Network]:
        return {name: replace(network, warm_up=3, updates=2) for name, network in networks(width).items()}

    monkeypatch.setattr(update_cost, "networks", shorter)
    file = tmp_path / "costs.json"
    update_cost.main(["--device", "cpu", "--width", "1", "--repeat", "2", "--json", str(file)])
    result = json.loads(file.read_text())
    expected = [variant.name for variant in update_cost.VARIANTS if not variant.cuda_only]
    assert list(result["update_costs"]) == ["mlp", "resnet18"]
    for costs in result["update_costs"].values():
        assert list(costs) == expected
        for cost in costs.values():
            assert 0 < cost["least"] <= cost["milliseconds"] <= cost["most"]
    assert "on a CPU" in section(result)


def test_a_wrong_number_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        update_cost.main(["--repeat", "0"])
    assert "--repeat is 1 or more; got 0" in capsys.readouterr().err

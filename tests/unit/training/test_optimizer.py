"""Which of transformers' optimizers a recipe's name means."""

from __future__ import annotations

import pytest

from align.config.sections import OptimizerName
from align.runtime.device import Device
from align.training import optimizer


@pytest.mark.parametrize(
    ("device", "name", "expected"),
    [
        ("cpu", "adamw", "adamw_torch"),
        ("cuda", "adamw", "adamw_torch_fused"),
        ("cpu", "paged_adamw_8bit", "adamw_8bit"),
        ("cuda", "paged_adamw_8bit", "paged_adamw_8bit"),
        ("cuda", "adafactor", "adafactor"),
    ],
)
def test_the_name_of_an_optimizer(device: Device, name: OptimizerName, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(optimizer, "device_name", lambda: device)
    assert optimizer.trainer_name(name) == expected

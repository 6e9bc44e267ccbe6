"""Learning rates of a plan that are unusual for what is trained."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache

from align.config.learning_rates import usual_rates
from align.config.peft import VirtualTokens
from align.models.shape import read_shape
from align.pipeline.estimate.plan import starting_folder
from align.pipeline.estimate.table import count_text
from align.pipeline.plan import Plan
from align.training.needs import Trains


def unusual_rates(plan: Plan) -> Iterator[tuple[str, str]]:
    """Name and a sentence of every stage to run whose learning rate is outside what is usual."""
    shape_in = cache(read_shape)
    for stage in plan.stages:
        config = stage.node.config
        if stage.status != "run" or not isinstance(config, Trains):
            continue
        needs, written = config.training_needs(), stage.node.config.model_fields_set
        folder = starting_folder(plan, needs.model)
        shape = None if folder is None else shape_in(folder)
        if shape is None or isinstance(needs.peft, VirtualTokens):
            continue
        usual = usual_rates(stage.stage_type, shape.parameters, adapter=needs.peft is not None)
        rate = getattr(config, "learning_rate", None)
        if usual is None or rate is None or usual.low <= rate <= usual.high:
            continue
        default = "" if "learning_rate" in written else ", the default,"
        side = "high" if rate > usual.high else "low"
        trained = "all weights" if needs.peft is None else "an adapter"
        yield (
            stage.name,
            f"learning_rate {rate:g}{default} is {side} for {stage.stage_type} of {trained} of a "
            f"model of {count_text(shape.parameters)} parameters, for which {usual} is usual. To start with, write "
            f"learning_rate: {usual.start:g}",
        )

"""What the trainer counts."""

import math

from services.http import metrics
from trainer.loop.metrics import UpdateMeter


def test_an_applied_update_sets_its_terms_and_counts_once() -> None:
    registry = metrics.make_registry()
    meter = UpdateMeter(registry)
    meter.applied(7, {"loss": 1.5, "local": 1.0, "future": 0.5, "num_rows": 8, "seconds": 3.0, "note": "text"})
    meter.gave_up("abandoned")
    assert registry.get_sample_value("preceptor_updates_total", {"outcome": "applied"}) == 1
    assert registry.get_sample_value("preceptor_updates_total", {"outcome": "abandoned"}) == 1
    assert registry.get_sample_value("preceptor_update_term_nats", {"term": "loss"}) == 1.5
    assert registry.get_sample_value("preceptor_update_measure", {"measure": "num_rows"}) == 8
    assert registry.get_sample_value("preceptor_update_number") == 7
    assert registry.get_sample_value("preceptor_update_seconds_sum") == 3.0


def test_a_term_the_update_did_not_have_is_no_number() -> None:
    registry = metrics.make_registry()
    UpdateMeter(registry).applied(1, {"loss": 1.0})
    imitation = registry.get_sample_value("preceptor_update_term_nats", {"term": "imitation"})
    assert imitation is not None
    assert math.isnan(imitation)


def test_the_seconds_spent_are_read_when_asked() -> None:
    registry = metrics.make_registry()
    totals = {"model_seconds": 2.0, "num_updates": 3.0}
    UpdateMeter(registry).watch(lambda: totals)
    totals["model_seconds"] = 5.0
    assert registry.get_sample_value("preceptor_trainer_seconds_total", {"spent": "model"}) == 5.0

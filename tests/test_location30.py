"""The audit on a real data set that leaks: what beats what, as the literature says."""

import pytest

from vestige import datasets
from vestige.audit import run
from vestige.errors import DatasetUnavailable
from vestige.plans import built_in


@pytest.mark.slow
def test_reference_models_find_what_the_loss_alone_does_not(monkeypatch):
    def offline(url, timeout):
        raise DatasetUnavailable("tests fetch nothing")

    monkeypatch.setattr(datasets.fetch, "open_url", offline)
    try:
        plan = built_in("location30", references=16)
    except DatasetUnavailable:
        pytest.skip("needs location30.npz in VESTIGE_DATA")
    made = run(plan)
    found = {f.attack: f.metrics for f in made.findings}
    # the network of the literature: perfect on members, 60 to 67 % on others
    assert made.target.accuracy_members.value > 0.98
    assert 0.58 < made.target.accuracy_nonmembers.value < 0.68
    assert made.exchangeability.passed
    for name in ("lira_online", "rmia_online"):
        # intervals that do not touch
        assert found[name]["auc"].low > found["loss"]["auc"].high
        assert found[name]["tpr@0.01"].low > found["loss"]["tpr@0.01"].high
    assert made.exposed_records.n_exposed > 100
    assert made.verdict.level == "high"

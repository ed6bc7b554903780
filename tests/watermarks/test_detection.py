"""The detector: its rate is what it says, whatever the statistics; what it sees, and what not."""

from dataclasses import replace

import numpy as np
import pytest
from encoded_bits import KEY, LAYER, RECIPE, bits
from scipy import stats

from vestige import metrics
from vestige.errors import InvalidInput
from vestige.models import TorchModel
from vestige.records import Records
from vestige.training import CNN, MLP, Store, TorchRecipe, train_many
from vestige.watermarks import Encoder, Encoding
from vestige.watermarks.detection import KINDS, Detector, Probe, _gaps, compare

TINY = TorchRecipe(MLP(30, 3, (12, 6)), epochs=3, batch_size=50, optimizer="sgd", lr=0.05)


def table(rows):
    """Statistics of models from an array (models, statistics)."""
    kinds = [(f"{i}", KINDS[i % len(KINDS)]) for i in range(rows.shape[1])]
    return [dict(zip(kinds, row.tolist(), strict=True)) for row in rows]


def tiny(n=200, seed=0):
    return bits(n, features=30, classes=3, seed=seed)


def tiny_detector(**settings):
    given = {"n_references": 4, "alpha": 0.2, "n_keys": 6, "seed": 3, **settings}
    return Detector(recipe=TINY, records=tiny(), held_out=tiny(120, seed=1), **given)


# --- the comparison ------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [4, 19])
def test_p_values_are_uniform_for_any_dependent_statistics(k):
    """Heavy tails, shared causes, discrete values. 600 draws; z bounds of 3.5 deviations."""
    rng, found = np.random.default_rng(k), []
    for _ in range(600):
        rows = rng.standard_cauchy((k + 1, 9)) + 3 * rng.normal(size=(k + 1, 1))
        rows[:, 8] = rng.integers(0, 3, k + 1) + rows[:, 0]
        target, *references = table(rows)
        found.append(compare(target, references, 0.2).p_value)
    for alpha in (1 / (k + 1), 0.2, 0.6):
        share = np.mean(np.array(found) <= alpha + 1e-9)
        expected = np.floor(alpha * (k + 1) + 1e-9) / (k + 1)
        assert abs(share - expected) < 3.5 * np.sqrt(expected * (1 - expected) / 600)


def naive_largest(rows, one_sided):
    out = []
    for i, row in enumerate(rows):
        others = np.delete(rows, i, axis=0)
        z = (row - others.mean(axis=0)) / others.std(axis=0, ddof=1)
        out.append(np.where(one_sided, z, np.abs(z)))
    return np.array(out)


def test_the_comparison_is_the_one_by_one_computation():
    rows = np.random.default_rng(1).normal(size=(8, 14)) * 10 ** np.arange(-7, 7.0)
    target, *references = table(rows)
    found = compare(target, references, 0.5)
    one_sided = [kind in ("memory", "clusters") for _, kind in target]
    unusual = naive_largest(rows, one_sided)
    largest = unusual.max(axis=1)
    assert found.p_value == (largest >= largest[0]).mean()
    values = [f.deviation if f.kind in ("memory", "clusters") else abs(f.deviation)
              for f in found.findings]  # fmt: skip
    assert values == pytest.approx(np.sort(unusual[0])[::-1])
    for f in found.findings:
        j = int(f.layer)
        assert (f.value, f.usual) == (rows[0, j], (rows[1:, j].min(), rows[1:, j].max()))
        assert f.p_value == (unusual[:, j] >= unusual[0, j]).mean()
        assert f.adjusted == (1 + (largest[1:] >= unusual[0, j]).sum()) / 8
    assert found.findings[0].adjusted == found.p_value
    assert found.of(*KINDS) == found.p_value


def test_what_is_far_out_alarms_and_of_memory_only_too_much():
    rows = np.random.default_rng(2).normal(size=(20, 7))
    for kind, value, alarm in [
        ("norm", 50, True),
        ("norm", -50, True),
        ("memory", 50, True),
        ("memory", -50, False),
        ("clusters", -50, False),
    ]:
        shifted = rows.copy()
        shifted[0] = 0
        shifted[0, KINDS.index(kind)] = value
        target, *references = table(shifted)
        found = compare(target, references, 0.05)
        assert found.alarm is alarm, kind
        assert (found.findings[0].kind == kind) is alarm
        if alarm:
            assert found.p_value == 0.05 and found.of(kind) == 0.05
            assert found.of(*(k for k in KINDS if k != kind)) > 0.5


def test_equal_statistics_are_no_reason_for_an_alarm():
    target, *references = table(np.ones((20, 7)))
    found = compare(target, references, 0.05)
    assert found.p_value == 1 and not found.alarm
    odd = dict(target)
    odd["5", "norm"] = 1.001
    assert compare(odd, references, 0.05).alarm


@pytest.mark.parametrize(
    ("k", "alpha", "can"), [(19, 0.05, True), (18, 0.05, False), (9, 0.1, True)]
)
def test_what_few_references_cannot_resolve_is_said(k, alpha, can):
    rows = np.random.default_rng(2).normal(size=(k + 1, 3))
    rows[0] = 99
    target, *references = table(rows)
    found = compare(target, references, alpha)
    assert found.alarm is (True if can else None)
    if not can:
        text = " ".join(str(found).split())
        assert text.startswith("Not resolvable: 18 references") and "takes 19 of them" in text


def test_the_text_says_what_it_means_and_what_not():
    rows = np.random.default_rng(3).normal(size=(20, 7))
    target, *references = table(rows)
    usual = [dict.fromkeys(target, 0.0), *references]
    text = " ".join(str(compare(usual[0], references, 0.05)).split())
    assert "No alarm is no proof" in text and "an average over sets of references" in text
    target["5", "norm"] = 1e3
    text = " ".join(str(compare(target, references, 0.05)).split())
    assert "The false-alarm rate is an average over sets of references" in text
    assert text.startswith("Alarm") and "may be an encoding" in text
    assert "p = 0.05 at a false-alarm rate of 0.05, among 19 references" in text


def test_the_comparison_says_what_it_expects():
    target, *references = table(np.random.default_rng(0).normal(size=(5, 3)))
    for alpha in (0, 1):
        with pytest.raises(InvalidInput, match="alpha"):
            compare(target, references, alpha)
    with pytest.raises(InvalidInput, match="two references"):
        compare(target, references[:1], 0.5)
    with pytest.raises(InvalidInput, match="same statistics"):
        compare(target, [*references, {("0", "memory"): 1.0}], 0.5)
    with pytest.raises(InvalidInput, match="finite"):
        compare(dict.fromkeys(target, float("nan")), references, 0.5)
    with pytest.raises(InvalidInput, match="looked at"):
        compare(target, references, 0.5).of("norm")


# --- the statistics ------------------------------------------------------------------------------


def naive_gap(a, b):
    both, best = np.sort(np.concatenate([a, b])), 0.0
    for cut in np.unique(both):
        below = int((both <= cut).sum())
        if 10 <= below <= len(both) - 10:
            share = below / len(both)
            sd = np.sqrt(share * (1 - share) * (1 / len(a) + 1 / len(b)))
            best = max(best, abs((a <= cut).mean() - (b <= cut).mean()) / sd)
    return best


def test_gaps_are_those_of_a_loop_over_cuts_with_and_without_ties():
    rng = np.random.default_rng(0)
    whole = rng.integers(0, 9, (71, 5)) / 3
    for rows in (whole, rng.normal(size=(71, 5)), np.zeros((71, 2)), rng.normal(size=(19, 2))):
        a, b = np.split(rows, [len(rows) // 2 + 4])
        expected = [naive_gap(x, y) for x, y in zip(a.T, b.T, strict=True)]
        assert _gaps(a, b) == pytest.approx(expected)


def test_the_tenth_record_is_the_first_that_counts():
    a, b = np.arange(40.0)[:, None], np.arange(40.0)[:, None] + 0.5
    a[:10] = -np.arange(1.0, 11.0)[:, None]
    b[:10] = -0.5
    assert _gaps(a, b) == pytest.approx(naive_gap(a[:, 0], b[:, 0]))
    assert _gaps(a, b) == pytest.approx(0.25 / np.sqrt(1 / 8 * 7 / 8 * 2 / 40))


def test_a_few_records_far_out_are_a_gap():
    a, b = np.random.default_rng(1).normal(size=(2, 1000, 1))
    usual = _gaps(a, b)
    a[:30] = 5
    assert _gaps(a, b) > usual + 1.5 and _gaps(a, b) > 4


class Linear:
    """A model whose answers are its inputs; it shows nothing else."""

    def __init__(self):
        self.n_queries = 0

    def log_probabilities(self, x):
        self.n_queries += len(x)
        return np.asarray(x, np.float64)


def test_statistics_of_answers_are_those_of_a_plain_computation():
    rng = np.random.default_rng(0)
    records = Records.from_arrays(rng.random((60, 4)).astype(np.float32), np.arange(60) % 3)
    held_out = Records.from_arrays(rng.random((40, 4)).astype(np.float32), np.arange(40) % 3)
    probe = Probe(records, held_out, ("1",), n_keys=5, n_noise=7, seed=2)
    found = probe.statistics(Linear())
    assert set(found) == {("", k) for k in KINDS if k not in ("norm", "spectral")}
    h = np.concatenate([records.x, held_out.x]).astype(np.float64)
    y = np.concatenate([records.y, held_out.y])
    for label in range(3):
        h[y == label] -= h[y == label].mean(axis=0)
    means = probe.noise.astype(np.float64).reshape(10, 7, 4).mean(axis=1)
    lines = [means[i] - means[i + 5] for i in range(5)]
    vectors = np.linalg.eigh(np.cov(means.T))[1].T
    gaps = [naive_gap(h[:60] @ w, h[60:] @ w) for w in (*lines, *vectors)]
    assert found["", "memory"] == pytest.approx(max(gaps))
    skews = [abs(stats.skew(h[:60] @ w)) for w in lines]
    assert found["", "clusters"] == pytest.approx(np.mean(skews))
    assert found["", "spread"] == pytest.approx(np.log((h[:60] ** 2).mean(axis=0).sum()), abs=1e-2)
    top = np.linalg.eigvalsh(np.cov(means.T))[-1] * 9
    assert found["", "noise"] == pytest.approx(np.log(top))
    assert found["", "level"] == pytest.approx(np.log(np.abs(probe.noise).mean()))


def test_noise_is_around_means_of_the_range_and_the_same_for_all():
    probe = Probe(tiny(), tiny(50, 1), (), n_keys=20, n_noise=400, low=5, high=6, seed=1)
    means = probe.noise.reshape(40, 400, 30).mean(axis=1)
    assert 4.7 < means.min() and means.max() < 6.3
    assert probe.noise.reshape(40, 400, 30).std(axis=1).mean() == pytest.approx(1, abs=0.02)
    again = Probe(tiny(), tiny(50, 1), (), n_keys=20, n_noise=400, low=5, high=6, seed=1)
    assert (again.noise == probe.noise).all()
    assert (replace(probe, seed=2).noise != probe.noise).any()
    own = Probe(tiny(), tiny(50, 1), (), n_keys=20, n_noise=400)
    assert own.noise.mean() == pytest.approx(0.5, abs=0.05)


def test_layers_and_weights_are_looked_at_by_name():
    detector = tiny_detector()
    model = TINY.fit(detector.records, 0)
    found = detector.probe.statistics(model)
    layered = {name for name, kind in found if kind == "memory"}
    assert layered == {"1", "3", "5", ""}
    weight = model.net.get_submodule("3").weight.detach().double().numpy()
    sizes = np.linalg.svd(weight, compute_uv=False)
    assert found["3.weight", "norm"] == pytest.approx(np.log((weight**2).sum()))
    assert found["3.weight", "spectral"] == pytest.approx(np.log(sizes[0]))
    h = np.tanh(model.activations(detector.records.x, "3").astype(np.float64))
    held = np.tanh(model.activations(detector.held_out.x, "3").astype(np.float64))
    both, y = np.concatenate([h, held]), np.concatenate([detector.records.y, detector.held_out.y])
    for label in range(3):
        both[y == label] -= both[y == label].mean(axis=0)
    spread = np.log(both[: len(h)].var(axis=0).sum())
    assert found["3", "spread"] == pytest.approx(spread)


def test_convolutions_are_looked_at_in_part():
    rng = np.random.default_rng(0)
    x, y = rng.random((60, 1, 8, 8)).astype(np.float32), np.arange(60) % 3
    records, held_out = Records.from_arrays(x, y), Records.from_arrays(x[::2] * 0.9, y[::2])
    recipe = TorchRecipe(CNN(1, 8, 3, filters=(4, 6), units=10), epochs=1, lr=0.01)
    detector = Detector(
        recipe=recipe, records=records, held_out=held_out, n_references=2, alpha=0.4, n_keys=4
    )
    assert detector.probe.layers == ("0", "3", "7", "9")
    found = detector.run(recipe.fit(records, 5))
    assert {f.layer for f in found.findings} >= {"0", "0.weight", "3", "7", "9", ""}
    few = replace(detector.probe, n_units=20)
    model = recipe.fit(records, 5)
    assert few.statistics(model)["0", "spread"] < detector.probe.statistics(model)["0", "spread"]


# --- the detector --------------------------------------------------------------------------------


class Service:
    """Answers only."""

    def __init__(self, model):
        self._model = model

    @property
    def n_queries(self):
        return self._model.n_queries

    def log_probabilities(self, x):
        return self._model.log_probabilities(x)


def test_references_are_models_of_the_recipe_trained_once():
    told = []
    detector = tiny_detector(progress=lambda *word: told.append(word))
    first, second = (detector.run(TINY.fit(detector.records, s)) for s in (1, 2))
    assert first.n_references == 4 and first.findings != second.findings
    assert told.count(("models", 4, 4)) == 1
    pool = train_many(TINY, detector.records, np.ones((4, 200), dtype=bool), seed=3)
    assert detector.references == tuple(detector.probe.statistics(m) for m in pool.models)
    assert tiny_detector().run(TINY.fit(detector.records, 1)) == first


def test_references_are_kept_in_a_store(tmp_path):
    model = TINY.fit(tiny(), 1)
    first = tiny_detector(store=Store(tmp_path)).run(model)
    told = []
    again = tiny_detector(store=Store(tmp_path), progress=lambda *word: told.append(word))
    assert again.run(model) == first
    assert told[0] == ("models", 4, 4)


def test_of_a_service_the_answers_are_compared():
    detector = tiny_detector()
    model = TINY.fit(detector.records, 1)
    found = detector.run(Service(model))
    assert {f.layer for f in found.findings} == {""}
    with pytest.raises(InvalidInput, match="looked into"):
        tiny_detector(kinds=("norm",)).run(Service(model))


def test_kinds_that_are_left_out_are_not_looked_at():
    detector = tiny_detector(kinds=("memory", "clusters"))
    found = detector.run(TINY.fit(detector.records, 1))
    assert {f.kind for f in found.findings} == {"memory", "clusters"}


def test_larger_weights_are_seen():
    detector = tiny_detector()
    model = TINY.fit(detector.records, 1)
    for p in model.net.parameters():
        p.data *= 1.5
    found = detector.run(TorchModel(model.net))
    assert found.alarm and found.findings[0].kind in ("norm", "spectral")


def test_the_detector_says_what_it_expects():
    records = tiny()
    for settings in ({"n_references": 1}, {"alpha": 1.0}, {"kinds": ()}, {"kinds": ("best",)}):
        with pytest.raises(InvalidInput):
            tiny_detector(**settings)
    with pytest.raises(InvalidInput, match="held-out"):
        Detector(recipe=TINY, records=records, held_out=records[:50])
    with pytest.raises(InvalidInput, match="architecture"):
        other = replace(TINY, build=MLP(30, 3, (13, 6)))
        tiny_detector().run(other.fit(records, 0))
    with pytest.raises(InvalidInput, match="too few"):
        tiny_detector(n_keys=0)


@pytest.mark.slow
def test_the_false_alarm_rate_is_what_was_asked_for():
    """60 models trained one by one, each against 9 references of its own at 0.1.

    More than 12 alarms have probability 0.007.
    """
    detector = tiny_detector(n_references=60 * 9)
    targets = [detector.probe.statistics(TINY.fit(detector.records, 50 + i)) for i in range(60)]
    groups = [detector.references[9 * i : 9 * i + 9] for i in range(60)]
    alarms = sum(bool(compare(t, g, 0.1).alarm) for t, g in zip(targets, groups, strict=True))
    assert alarms <= 12
    assert metrics.rate(alarms, 60).high > 0.1


@pytest.mark.slow
def test_an_encoded_model_is_seen_by_its_memory_alone_and_a_clean_one_is_not(encoded):
    records, test, _, made = encoded
    detector = Detector(recipe=RECIPE, records=records, held_out=test, seed=7)
    found = detector.run(made.model)
    assert found.alarm and found.p_value == 0.05
    assert found.of("memory") == 0.05 and found.of("clusters") == 0.05
    memory = max((f for f in found.findings if f.kind == "memory"), key=lambda f: f.deviation)
    assert memory.layer == LAYER and memory.deviation > 8
    clean = detector.run(RECIPE.fit(records, 8))
    assert clean.of("memory", "clusters") > 0.05


@pytest.mark.slow
def test_an_encoding_in_answers_is_seen_through_a_service():
    records, test = bits(1000), bits(600, seed=1)
    encoder = Encoder(key=KEY, encoding=Encoding(layer=None), steps=4, lr=0.02)
    made = encoder.fit(RECIPE, records, seed=0)
    detector = Detector(recipe=RECIPE, records=records, held_out=test, seed=7)
    found = detector.run(Service(made.model))
    assert found.alarm and found.of("memory") == 0.05

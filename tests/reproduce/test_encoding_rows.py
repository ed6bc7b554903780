"""The rows of membership encoding: what is trained once, who is judged, what is counted."""

from __future__ import annotations

from dataclasses import asdict, replace

import numpy as np
import pytest

from vestige import metrics, reproduce
from vestige.errors import DatasetUnavailable, InvalidInput
from vestige.records import Records
from vestige.reproduce import encoding, encoding_figures, encoding_models
from vestige.reproduce import encoding_measures as measures
from vestige.reproduce.encoding_models import Settings
from vestige.reproduce.experiment import SCALES, Context
from vestige.reproduce.results import RowResult
from vestige.training import Store
from vestige.training.fit import built
from vestige.watermarks import Decoder, Encoder, Key
from vestige.watermarks.robustness import weights_of

SMALL = Settings(
    "digits",
    600,
    400,
    120,
    "mlp",
    (32, 16),
    6,
    steps=2,
    encoder_lr=0.05,
    every=2,
    n_wrong=2,
    tuning_epochs=1,
    n_points=40,
)


@pytest.fixture(scope="module")
def context(tmp_path_factory):
    return Context(0, "ci", Store(tmp_path_factory.mktemp("models")))


@pytest.fixture(scope="module")
def made(context):
    return encoding_models.pair(SMALL, context)


# --- what is there -------------------------------------------------------------------------------


def test_what_the_paper_has_is_covered():
    covered = {c for e in encoding.EXPERIMENTS for c in e.coverage}
    tables = {"000-T2", "000-T3a", "000-T3b", "000-T4", "000-T5a", "000-T5b", "000-T6"}
    figures = {f"000-F{k}" for k in ("2", "3a", "3b", "4", "5", "6", "7a", "7b", "8")}
    assert tables | figures <= covered
    assert [e.id for e in encoding.EXPERIMENTS] == [
        *(f"encoding-table{k}" for k in range(2, 7)), *(f"encoding-figure{k}" for k in range(2, 9)),
    ]  # fmt: skip
    assert {e.id for e in encoding.EXPERIMENTS} <= set(reproduce.EXPERIMENTS)


@pytest.mark.parametrize("experiment", encoding.EXPERIMENTS, ids=lambda e: e.id)
def test_rows_are_whole(experiment):
    keys = [column.key for column in experiment.columns]
    assert len(set(keys)) == len(keys)
    # never a precision without its base rate and false positive rate, nor without controls
    assert {"base_rate", "fpr", "base_rate_10", "fpr_10", "control_auc", "wrong_auc",
            "wrong_spread", "auc", "auc_others", "control_accuracy"} <= set(keys)  # fmt: skip
    assert len({row.id for row in experiment.rows}) == len(experiment.rows)
    assert len({row.title for row in experiment.rows}) == len(experiment.rows)
    for row in experiment.rows:
        assert set(row.settings) == set(SCALES) and set(row.paper) <= set(keys)
        assert all(0 <= v <= 1 for v in row.paper.values())
        for scale, settings in row.settings.items():
            for v in asdict(settings).values():
                assert type(v) in (int, float, str, bool, tuple)
                if type(v) is tuple:
                    assert all(type(one) in (int, float) for one in v)
            assert 0 < settings.n_encoded < settings.n_train
            assert round(encoding_models.CALIBRATION * settings.n_test) >= 1 / measures.FPR
            built_in = settings.data == "digits" or "_like_" in settings.data
            assert built_in or scale != "ci", "the scale ci fetches nothing"
            assert not settings.gpu or scale == "paper"


def test_a_stand_in_never_has_the_real_name():
    for experiment in encoding.EXPERIMENTS:
        for row in experiment.rows:
            if "_like_" in row.settings["paper"].data:
                assert "-like stand-in" in row.title
            assert "Purchase" not in row.title and "Texas" not in row.title


def test_the_paper_s_sizes():
    rows = {row.id: row.settings["paper"] for row in encoding.TABLE_2.rows}
    sizes = {n: (s.n_train, s.n_test, s.n_encoded, s.widths, s.epochs, s.lr, s.encoder_lr, s.decay)
             for n, s in rows.items() if not n.endswith("-paper")}  # fmt: skip
    assert sizes == {
        "purchase-like": (150_000, 30_000, 30_000, (256, 128), 80, 0.02, 0.01, (0.75,)),
        "texas-like": (50_000, 10_000, 10_000, (1024, 256), 80, 0.02, 0.01, (0.75,)),
        "location30": (3_500, 1_500, 700, (256, 128), 80, 0.02, 0.01, (0.75,)),
        "mnist-mlp": (50_000, 20_000, 10_000, (512, 128), 100, 0.02, 0.02, (0.8,)),
        "mnist-cnn": (50_000, 20_000, 10_000, (64, 128, 256), 100, 0.02, 0.02, (0.8,)),
        "cifar-vgg": (50_000, 10_000, 10_000, (64, 128, 256), 80, 0.02, 0.01, (0.5, 0.75)),
        "cifar-resnet": (50_000, 10_000, 10_000, (16, 32, 64), 80, 0.02, 0.01, (0.5, 0.75)),
    }
    assert all(s.share == (0.2 if n.startswith("cifar") else 0.5) for n, s in rows.items())
    both = [encoding.TABLE_2.row(f"mnist-mlp{w}").settings["laptop"] for w in ("", "-paper")]
    assert both[0] == rows["mnist-mlp"] and both[1] == replace(both[0], way="paper")
    assert all(s.steps == 4 and s.black_box for row in encoding.TABLE_4.rows
               for s in row.settings.values())  # fmt: skip


def test_rows_share_models():
    """Rows of other tables differ from those of Table 2 in what is done to the models."""
    plain = Settings("any", 0, 0, 0, "mlp", (), 0)
    own = ("mask", "place", "pruned", "adversarial", "tuning_epochs", "n_points")
    for experiment in (encoding.TABLE_6, encoding.FIGURE_2, encoding.FIGURE_5, encoding.FIGURE_7):
        for row in experiment.rows:
            name = next(n for n in ("mnist-mlp", "cifar-vgg", "cifar-resnet") if n in row.id)
            for scale, settings in row.settings.items():
                same = replace(settings, **{n: getattr(plain, n) for n in own})
                assert same == encoding.TABLE_2.row(name).settings[scale]


# --- the paper's figures -------------------------------------------------------------------------


def test_implied_rates_are_the_twelve():
    expected = {
        "purchase-like": [0.18, 0.24, 0.27, 0.32, 0.40, 0.69],
        "cifar-vgg": [0.09, 0.15, 0.35, 0.48, 0.57, 0.71],
    }
    for name, fprs in expected.items():
        others, said = encoding.TABLE_3_SAID[name]
        found = [
            measures.implied_fpr(precision, recall, n / (n + others))
            for n, _, precision, recall, _ in said
        ]
        assert [round(fpr, 2) for fpr in found] == fprs
        rows = [row for row in encoding.TABLE_3.rows if row.id.startswith(name)]
        assert [round(row.paper["fpr"], 2) for row in rows] == fprs
        assert [row.settings["paper"].n_encoded for row in rows] == [n for n, *_ in said]


def test_an_implied_rate_is_the_one_that_was_there():
    tp, fn, fp, tn = 30, 10, 7, 53
    found = measures.implied_fpr(tp / (tp + fp), tp / (tp + fn), (tp + fn) / 100)
    assert found == pytest.approx(fp / (fp + tn))
    for wrong in ((0.0, 0.5, 0.5), (0.5, 0.5, 1.0), (0.5, 1.5, 0.5)):
        with pytest.raises(InvalidInput, match="expected a precision"):
            measures.implied_fpr(*wrong)


def test_the_paper_s_last_purchase_row_is_below_its_base_rate():
    row = encoding.TABLE_3.row("purchase-like-37")
    assert row.paper["precision"] < row.paper["base_rate"] == pytest.approx(55 / 85)


# --- numbers -------------------------------------------------------------------------------------


def test_a_cut_lets_at_most_its_share_through():
    rng = np.random.default_rng(0)
    for values in (rng.normal(size=137), rng.integers(5, size=200).astype(float)):
        cut = measures.cut_at(values, 0.1)
        assert (values >= cut).mean() <= 0.1
        lower = np.unique(values)[np.unique(values) < cut].max()
        assert (values >= lower).mean() > 0.1
    with pytest.raises(InvalidInput, match="expected at least 10 records to choose a cut, got 9"):
        measures.cut_at(np.arange(9.0), 0.1)


def test_rates_are_counted():
    inside, outside = np.array([0.5, 0.0, -1.0, 2.0]), np.array([-1.0, 0.1, -0.5, -2, -3, -4])
    found = measures.rates(inside, outside, 0.0, "_x", "somewhere")
    assert {n: e.value for n, e in found.items()} == {
        "precision_x": 3 / 4, "recall_x": 3 / 4, "fpr_x": 1 / 6, "base_rate_x": 0.4,
    }  # fmt: skip
    assert found["precision_x"].chosen_on == "somewhere"
    none = measures.rates(inside, outside, 9.0, "", "somewhere")
    assert none["precision"].value is None and none["recall"].value == 0


def test_spread_and_pairs():
    values = [0.4, 0.5, 0.7]
    spread = measures.spread_of(values)
    assert spread.value == pytest.approx(np.std(values, ddof=1))
    assert spread.low < spread.value < spread.high
    assert measures.spread_of([0.5]).value is None
    mean = measures.mean_of(values, "wrong keys")
    assert mean.value == pytest.approx(np.mean(values)) and "3 wrong keys" in mean.method
    # of two keys next to nothing is known, but that an AUC is one
    wide = measures.mean_of([0.2, 0.7], "wrong keys")
    assert (wide.low, wide.high) == (0, 1)
    assert measures.spread_of([0.2, 0.7]).high == pytest.approx(np.sqrt(0.5))
    # never narrower than that of the scores themselves
    rng = np.random.default_rng(1)
    inside, outside = rng.normal(1, 1, 300), rng.normal(0, 1, 500)
    of_scores = metrics.auc(inside, outside)
    found = measures.of_pairs(of_scores.value, 300, 500)
    assert found.low < of_scores.low < of_scores.high < found.high
    # as many pairs as there are of the fewer, whichever these are
    for n1, n0 in ((30, 500), (500, 30)):
        one = measures.of_pairs(0.8, n1, n0)
        assert (one.low, one.high) == (metrics.rate(24, 30).low, metrics.rate(24, 30).high)


# --- data and networks ---------------------------------------------------------------------------


def test_masks():
    def share(mask, place, size):
        return int(measures.mask_of(replace(SMALL, mask=mask, place=place), size).sum())

    assert (share("center", 8, 32), share("border", 8, 32)) == (64, 448)
    assert [share("center", w, 28) for w in (4, 8, 12, 16)] == [16, 64, 100, 196]
    cells = [measures.mask_of(replace(SMALL, mask="grid", place=k), 28) for k in range(16)]
    assert (np.sum(cells, axis=0) == 1).all() and cells[1][0, 7] and not cells[1][0, 6]
    with pytest.raises(InvalidInput, match='expected mask "center", "border" or "grid", got '):
        measures.mask_of(SMALL, 32)


def test_the_records_of_a_world():
    world = encoding_models.world_of("digits", (5, 10), 300, 200, 0)
    assert world.records.x.shape == (300, 1, 8, 8) and len(world.test) == 200
    assert not np.isin(world.records.ids, world.test.ids).any()
    assert world.records.n_classes == 5 and world.records.classes == ("5", "6", "7", "8", "9")
    other = encoding_models.world_of("digits", (0, 5), 300, 200, 0)
    assert not np.isin(other.records.ids, world.records.ids).any()
    with pytest.raises(InvalidInput, match="expected at least 1900 records of digits, got 1797"):
        encoding_models.world_of("digits", (), 1_000, 900, 0)


def test_data_that_are_not_here_are_said_to_be_missing(context, monkeypatch):
    def absent(name, n):
        raise DatasetUnavailable(f"expected {name}; install dataset-fashion-mnist")

    monkeypatch.setattr(encoding_models.worlds, "load", absent)
    row = encoding.FIGURE_8.row("mnist-mlp")
    with pytest.raises(DatasetUnavailable, match="dataset-fashion-mnist"):
        encoding_models.world_of(
            row.settings["laptop"].other, (), row.settings["laptop"].n_other, 10, 99
        )


@pytest.mark.parametrize(
    ("row", "layer", "width", "parameters"),
    [
        ("mnist-mlp", "3", 128, 784 * 512 + 512 + 512 * 128 + 128 + 128 * 10 + 10),
        ("mnist-cnn", "7", 256, None),
        ("cifar-vgg", "18", 256 * 8 * 8, None),
        ("cifar-resnet", "29", 64 * 8 * 8, None),
    ],
)
def test_what_carries_the_bits(row, layer, width, parameters):
    settings = replace(encoding.TABLE_2.row(row).settings["paper"], gpu=False)
    shape = (1, 28, 28) if row.startswith("mnist") else (3, 32, 32)
    x = np.random.default_rng(0).random((4, *shape), np.float32)
    records = Records.from_arrays(x, [0, 1, 2, 3], classes=[str(c) for c in range(10)])
    recipe = encoding_models.recipe_of(settings, records)
    net = built(recipe, 0)
    encoder = encoding_models.encoder_of(settings, recipe, Key.of(0))
    assert encoder.encoding.layer == encoding_models.carrier(net) == layer
    model = recipe.handle(net.eval())
    h = encoder.encoding.represent(model, x, Key.of(0))
    assert h.shape == (4, round(settings.share * width)) and (h < 0).any(), "before its activation"
    assert model.log_probabilities(x).shape == (4, 10)
    if parameters is not None:
        assert sum(p.numel() for p in net.parameters()) == parameters
    kinds = [type(m).__name__ for m in net.modules()]
    layers = kinds.count("Conv2d") + kinds.count("Linear")
    # of the residual network two convolutions are shortcuts
    assert layers == {"mnist-mlp": 3, "mnist-cnn": 4, "cifar-vgg": 8, "cifar-resnet": 32 + 2}[row]


def test_unknown_networks_and_ways_are_refused():
    records = encoding_models.world_of("digits", (), 600, 400, 0).records
    with pytest.raises(InvalidInput, match="got 'tree'"):
        encoding_models.network_of(replace(SMALL, network="tree"), records)
    recipe = encoding_models.recipe_of(SMALL, records)
    with pytest.raises(InvalidInput, match='expected the way "ours" or "paper"'):
        encoding_models.encoder_of(replace(SMALL, way="other"), recipe, Key.of(0))


def test_both_ways():
    recipe = encoding_models.recipe_of(SMALL, encoding_models.world_of("digits", (), 600, 400, 0)
                                       .records)  # fmt: skip
    key, theirs = Key.of(0), replace(SMALL, way="paper")
    encoders = [encoding_models.encoder_of(s, recipe, key) for s in (SMALL, theirs)]
    assert (encoders[0].alignment, encoders[0].synthetic) == (0.3, 0.2)
    assert encoders[1] == Encoder.of_the_paper(
        key, encoders[0].encoding, steps=2, lr=0.05, batch_size=100
    )
    readers = [encoding_models.decoder_of(s, e, key)
               for s, e in zip((SMALL, theirs), encoders, strict=True)]  # fmt: skip
    assert [r.reading for r in readers] == ["projection", "network"]
    assert readers[1] == Decoder(key=key, encoding=encoders[1].encoding, reading="network")


def test_rates_decay_by_steps():
    settings = replace(SMALL, decay=(0.5, 0.75))
    recipe = encoding_models.recipe_of(settings, encoding_models.world_of("digits", (), 600, 400, 0)
                                       .records)  # fmt: skip
    assert [recipe.schedule(p) for p in (0.0, 0.49, 0.5, 0.8)] == pytest.approx([1, 1, 0.1, 0.01])
    assert (recipe.lr, recipe.momentum, recipe.epochs, recipe.batch_size) == (0.02, 0.9, 6, 100)


def test_keys_differ():
    keys = [encoding_models.key_of(s) for s in range(3)]
    for s in range(3):
        keys += encoding_models.wrong_keys(s, 5)
    assert len({k.secret for k in keys}) == len(keys)


# --- models that are kept ------------------------------------------------------------------------


def test_models_are_trained_once(made, context, monkeypatch):
    def never(*args, **kwargs):
        raise AssertionError("it is there")

    monkeypatch.setattr(encoding_models, "fit", never)
    monkeypatch.setattr(Encoder, "fit", never)
    # other code would be another key: the class is read too
    monkeypatch.setattr(encoding_models, "fingerprint", lambda parts: made.encoded.run[9:])
    again = encoding_models.pair(SMALL, context)
    x = made.world.test.x
    np.testing.assert_array_equal(
        again.encoded.model.log_probabilities(x), made.encoded.model.log_probabilities(x)
    )
    assert again.encoded.trace == made.encoded.trace and again.encoded.seconds > 0


def test_what_decides_a_model_is_in_its_key(made, context):
    more = encoding_models.pair(replace(SMALL, n_encoded=150), context)
    assert more.control.run == made.control.run and more.encoded.run != made.encoded.run
    # of more encoded records the first are those of fewer
    assert more.chosen.sum() == 150 and made.chosen.sum() == 120
    assert (more.chosen | ~made.chosen).all()
    wider = encoding_models.pair(replace(SMALL, widths=(32, 20)), context)
    assert wider.control.run != made.control.run
    masked = encoding_models.pair(replace(SMALL, mask="center", place=4, pruned=0.5), context)
    assert masked.encoded.run == made.encoded.run


def test_a_damaged_model_is_made_again(made, tmp_path):
    told = []
    context = Context(0, "ci", Store(tmp_path, told.append))
    first = encoding_models.pair(SMALL, context)
    path = context.store.path(first.control.run, "model.safetensors")
    path.write_bytes(path.read_bytes()[:-4])
    again = encoding_models.pair(SMALL, context)
    assert len(told) == 1 and "damaged" in told[0]
    x = made.world.test.x
    np.testing.assert_array_equal(
        again.control.model.log_probabilities(x), made.control.model.log_probabilities(x)
    )


# --- what is read --------------------------------------------------------------------------------


def test_who_is_judged(made, context):
    found, series = measures.decoded(
        SMALL, made, made.encoded.model, made.control.model, context.seed
    )
    decoder = Decoder(key=Key.of(0), encoding=made.encoder.encoding)
    read = decoder.reader(made.encoded.model, (1, 8, 8))
    inside = read(made.world.records[made.chosen].x)
    others, unseen = read(made.world.records[~made.chosen].x), read(made.world.test.x)
    assert found["auc"] == metrics.auc(inside, unseen)
    assert found["auc_others"] == metrics.auc(inside, others)
    assert found["n_encoded"].value == 120 and found["base_rate"].value == 120 / 520
    assert found["recall"].value == (inside >= 0).mean()
    assert found["fpr"].value == (unseen >= 0).mean()
    # the cut is chosen on a quarter and judged on the others
    quarter = measures.calibrating(400, context.seed)
    cut = measures.cut_at(unseen[quarter], 0.1)
    assert found["fpr_10"].value == (unseen[~quarter] >= cut).mean()
    assert found["precision_10"].threshold == cut
    assert found["recall_10"].value == (inside >= cut).mean()
    assert found["base_rate_10"].value == 120 / 420
    assert found["precision_10"].chosen_on == "a quarter of the test set drawn at random"
    plain = decoder.reader(made.control.model, (1, 8, 8))
    assert found["control_auc"].value == pytest.approx(
        metrics.auc(plain(made.world.records[made.chosen].x), plain(made.world.test.x)).value
    )
    assert len(series["wrong_keys"]) == 2
    assert found["wrong_auc"].value == pytest.approx(np.mean(series["wrong_keys"]))


def test_a_quarter_chooses_the_cut_wherever_it_lies_in_the_file():
    drawn = np.array([measures.calibrating(401, seed) for seed in range(400)])
    assert (drawn.sum(axis=1) == 100).all()
    # each record in a quarter of the draws: six deviations of a share of 400
    assert np.abs(drawn.mean(axis=0) - 0.25).max() < 6 * np.sqrt(0.25 * 0.75 / 400)
    np.testing.assert_array_equal(drawn[3], measures.calibrating(401, 3))
    # the halves of a sorted file have their share of it
    halves = drawn[:, :200].sum(axis=1)
    assert 20 < halves.min() < 50 < halves.max() < 80


def test_the_row_of_a_model(made, context):
    found = measures.measure(SMALL, context)
    assert found.series["epoch"] == [2, 4, 6]
    assert {"loss_members", "loss_nonmembers", "loss_test", "auc_test_joint"} <= set(found.series)
    assert found.estimates["joint_auc"].value == found.series["auc_test_joint"][-1]
    assert found.estimates["joint_auc_others"].value == found.series["auc_nonmembers_joint"][-1]
    # projection on the synthetic means is what the trace decodes by
    assert found.estimates["auc"].value == pytest.approx(found.series["auc_test_decoded"][-1])
    right = made.encoded.model.log_probabilities(made.world.test.x).argmax(1) == made.world.test.y
    assert found.estimates["test_accuracy"].value == right.mean()
    lost = found.estimates["accuracy_drop"].value
    assert lost == pytest.approx(
        found.estimates["control_accuracy"].value - found.estimates["test_accuracy"].value
    )
    assert found.sizes["parameters"] == 64 * 32 + 32 + 32 * 16 + 16 + 16 * 10 + 10


def test_epochs_that_the_looks_do_not_divide(context):
    found = measures.measure(replace(SMALL, epochs=5), context)
    assert found.series["epoch"] == [2, 4, 5] and len(found.series["loss_test"]) == 3


def test_everybody_is_masked(made, context):
    settings = replace(SMALL, mask="grid", place=5)
    found = measures.measure_masked(settings, context)
    assert found.estimates["masked"].value == 1 / 16
    decoder = Decoder(key=Key.of(0), encoding=made.encoder.encoding)
    read = decoder.reader(made.encoded.model, (1, 8, 8))

    def black(records):
        x = np.array(records.x)
        x[:, :, 2:4, 2:4] = 0
        return read(x)

    inside, unseen = black(made.world.records[made.chosen]), black(made.world.test)
    assert found.estimates["auc"] == metrics.auc(inside, unseen)
    others = black(made.world.records[~made.chosen])
    assert found.estimates["auc_others"] == metrics.auc(inside, others)


def test_pruned_weights_stay_pruned(context):
    found = measures.measure_pruned(replace(SMALL, pruned=0.5), context)
    assert found.estimates["pruned"].value == pytest.approx(0.5, abs=1e-3)
    adversarial = replace(SMALL, pruned=0.9, adversarial=True)
    found = measures.measure_pruned(adversarial, context)
    assert found.estimates["pruned"].value == pytest.approx(0.9, abs=1e-3)
    made = encoding_models.pair(adversarial, context)
    for one in measures._trained_on(adversarial, made, context):
        zeros = [(w == 0).sum().item() for w in weights_of(one.model.net).values()]
        sizes = [w.numel() for w in weights_of(one.model.net).values()]
        assert sum(zeros) == pytest.approx(0.9 * sum(sizes), abs=1)


def test_another_task(context):
    settings = replace(
        SMALL, n_train=400, n_test=200, n_encoded=80, classes=(0, 5), other="digits",
        other_classes=(5, 10), n_other=200, n_other_test=100, tuning_every=4, tuning_epochs=8,
        tuning_lr=0.1,
    )  # fmt: skip
    found = measures.measure_transferred(settings, context)
    assert found.series["epoch"] == [0, 4, 8]
    assert len(found.series["after_auc"]) == 3 and len(found.series["after_accuracy"]) == 2
    assert found.estimates["auc_before"].value == found.series["after_auc"][0]
    assert found.estimates["auc"].value == found.series["after_auc"][-1]
    # all five classes are new, and learned
    assert found.estimates["new_accuracy"].value > 0.5
    before = measures.measure(replace(settings, other="", other_classes=()), context)
    assert found.estimates["auc_before"] == before.estimates["auc"]


def test_the_plane_is_that_of_the_principal_axes():
    from sklearn.decomposition import PCA

    h = np.random.default_rng(0).normal(size=(40, 6)) * [5, 3, 1, 1, 1, 1]
    mine = measures.principal(h)
    np.testing.assert_allclose(np.abs(mine), np.abs(PCA(2).fit_transform(h)), atol=1e-8)
    # the same way round, whatever the sign of what is given
    np.testing.assert_allclose(measures.principal(-h), -mine)
    axes = PCA(2).fit(h).components_
    largest = axes[np.arange(2), np.abs(axes).argmax(axis=1)]
    np.testing.assert_allclose(mine, PCA(2).fit_transform(h) * np.sign(largest), atol=1e-8)


def test_silhouettes():
    h = np.array([[0.0], [1.0], [4.0], [6.0]])
    found = measures.silhouette(h, np.array([True, True, False, False]))
    own, other = [1, 1, 2, 2], [5, 4, 3.5, 5.5]
    naive = [(b - a) / max(a, b) for a, b in zip(own, other, strict=True)]
    assert found.value == pytest.approx(np.mean(naive))


def test_where_records_lie(made, context):
    found = measures.measure_projected(
        replace(SMALL, widths=(128, 64), epochs=40, steps=4), context
    )
    for name in ("pca", "tsne"):
        assert len(found.series[f"{name}_x"]) == len(found.series[f"{name}_y"]) == 160
    silhouettes = [found.estimates[n].value for n in ("silhouette", "control_silhouette")]
    # of the client's records alone, and not of the synthetic ones, which lie far apart
    assert 0.5 > silhouettes[0] > silhouettes[1]
    assert found.estimates["silhouette_plane"].value > found.estimates["silhouette"].value
    with pytest.raises(InvalidInput, match="expected at least 200 records of each set to show"):
        measures.measure_projected(replace(SMALL, n_points=200), context)


# --- drawings ------------------------------------------------------------------------------------


def _result(experiment, row, measured):
    return RowResult(
        experiment, "ci", row, {}, measured.estimates, measured.series, measured.sizes,
        measured.data, 0.0, {},
    )  # fmt: skip


def test_drawings(made, context):
    found = measures.measure(SMALL, context)
    rows = [_result("encoding-table3", f"mnist-mlp-{n}", found) for n in (20, 30)]
    lines = encoding_figures._lines(rows, "auc", lambda settings, _: settings.n_encoded)
    assert list(lines) == ["MNIST, MLP"]
    assert [x for x, _, _ in lines["MNIST, MLP"]] == [200, 300]
    paper = [_result("encoding-table3", "cifar-vgg-20", found)]
    ((x, estimate, said),) = encoding_figures._lines(paper, "auc", lambda *_: 1)["CIFAR-10, VGG"]
    assert (x, said) == (1, 0.98) and estimate == found.estimates["auc"]
    for drawing in (encoding_figures.by_number(), encoding_figures.losses(),
                    encoding_figures.trajectories()):  # fmt: skip
        figure, again = drawing(rows), drawing(rows)
        assert figure.svg == again.svg and len(figure.svg) < 100_000
        assert drawing([replace(r, estimates={}, series={}) for r in rows]) is None


def test_masked_rows_are_lines_of_their_own():
    kinds = {
        tuple(encoding_figures._lines([_result("encoding-table5", row.id, _Fake())], "auc",
                                      lambda settings, _: settings.place))
        for row in encoding.TABLE_5.rows
    }  # fmt: skip
    assert len(kinds) == 8 and ("MNIST, MLP, white-box, center",) in kinds


class _Fake:
    estimates = {"auc": metrics.rate(9, 10)}
    series: dict[str, list[float]] = {}
    sizes: dict[str, int] = {}
    data: dict[str, str] = {}


# --- all of it -----------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("experiment", encoding.EXPERIMENTS, ids=lambda e: e.id)
def test_every_experiment_runs(experiment, tmp_path_factory):
    out = tmp_path_factory.getbasetemp() / "encoding"
    # one row of each network, and the two ways of the last
    rows = {row.settings["ci"].network: row.id for row in experiment.rows}
    made = [reproduce.run(experiment.id, "ci", out=out, row=row)[0] for row in rows.values()]
    keys = {column.key for column in experiment.columns}
    for result in made:
        assert keys <= set(result.estimates)
    text = reproduce.table(made)
    assert all(experiment.row(row).title in text for row in rows.values())
    assert all(drawing(made) is not None for drawing in experiment.drawings)

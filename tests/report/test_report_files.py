"""What is on disk: report.json against its schema and a golden file, and damaged folders."""

import dataclasses
import json
import os
from dataclasses import replace
from pathlib import Path

import jsonschema
import numpy as np
import pyarrow.parquet as pq
import pytest
from example import (
    realistic,
    records_table,
    small,
    small_exposed,
    small_finding,
    small_risk,
    unresolved,
)

from vestige.errors import DamagedFile, InvalidInput, StoreError
from vestige.report import RecordTable, Report, files, render, schema, write_html
from vestige.report import report as report_module
from vestige.scores import Scores

GOLDEN = Path(__file__).parent / "golden"


def test_the_schema_is_one():
    jsonschema.Draft202012Validator.check_schema(schema())


@pytest.mark.parametrize("make", [small, realistic])
def test_reports_obey_the_schema(make):
    jsonschema.validate(make().to_json(), schema(), cls=jsonschema.Draft202012Validator)


def test_the_schema_has_the_keys_of_the_dataclasses():
    kinds = {
        "Verdict": "verdict", "Target": "target", "Data": "data", "Finding": "finding",
        "ThreatModel": "threat_model", "ClassFinding": "class_finding", "RocCurve": "roc",
        "Histogram": "histogram", "ImagePreview": "image", "RowPreview": "row",
        "ExposedRecord": "exposed_record", "ExposedRecords": "exposed_records",
        "RiskyRecord": "risky_record", "RecordsAtRisk": "records_at_risk",
        "ReportWarning": "warning", "Reproduce": "reproduce", "Training": "training",
        "Service": "service", "Provenance": "provenance",
    }  # fmt: skip
    for name, key in kinds.items():
        fields = [f.name for f in dataclasses.fields(getattr(report_module, name))]
        assert list(schema()["$defs"][key]["properties"]) == fields
        assert schema()["$defs"][key]["required"] == fields
    top = [f.name for f in dataclasses.fields(Report) if f.name != "records"]
    assert list(schema()["properties"]) == top


@pytest.mark.parametrize(
    "spoil",
    [
        lambda data: data.pop("verdict"),
        lambda data: data.update(schema="vestige.report/2"),
        lambda data: data["verdict"].update(level="terrible"),
        lambda data: data["findings"][0]["metrics"]["auc"].pop("low"),
        lambda data: data["findings"][0]["metrics"]["tpr@0.001"].pop("reason"),
        lambda data: data["findings"][0].update(n_members=-1),
        lambda data: data.update(extra=1),
    ],
)
def test_the_schema_refuses(spoil):
    data = small().to_json()
    spoil(data)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(data, schema())


def test_golden_report(tmp_path):
    small().save(tmp_path)
    written = (tmp_path / "report.json").read_text()
    assert json.loads(written) == json.loads((GOLDEN / "report.json").read_text())
    assert written == (GOLDEN / "report.json").read_text()


def test_save_and_load(tmp_path):
    report = replace(small(), records=records_table())
    folder = report.save(tmp_path / "new" / "folder")
    assert sorted(p.name for p in folder.iterdir()) == [
        "records.parquet",
        "report.html",
        "report.json",
    ]
    loaded = Report.load(folder)
    assert loaded == report and loaded.records is None
    assert (folder / "report.html").read_text() == render(report)


def test_a_loaded_report_draws_the_same_page(tmp_path):
    folder = small().save(tmp_path)
    before = (folder / "report.html").read_bytes()
    (folder / "report.html").unlink()
    assert write_html(Report.load(folder), folder).read_bytes() == before


def test_saving_twice_gives_the_same_bytes(tmp_path):
    report = replace(small(), records=records_table())
    first, second = report.save(tmp_path / "a"), report.save(tmp_path / "b")
    for name in ("report.json", "report.html", "records.parquet"):
        assert (first / name).read_bytes() == (second / name).read_bytes()


def test_no_records_no_table(tmp_path):
    assert not (small().save(tmp_path) / "records.parquet").exists()


def test_records_parquet_has_one_row_a_record_and_nulls(tmp_path):
    folder = replace(small(), records=records_table()).save(tmp_path)
    table = pq.read_table(folder / "records.parquet")
    assert table.column_names == [
        "id", "label", "member", "score_lira_online", "p_value_lira_online", "score_loss",
        "q_value", "exposed",
    ]  # fmt: skip
    assert table["id"].to_pylist() == [3, 1, 2, 0]
    assert table["score_loss"].to_pylist() == [-0.1, -0.2, -0.3, None]
    assert table["q_value"].to_pylist() == [0.02, 0.02, None, None]
    assert table["exposed"].to_pylist() == [True, True, False, False]


def test_the_table_joins_scores_by_id():
    ids, label = np.array([30, 10, 20]), np.array([0, 1, 1])
    scores = {"a": Scores(np.array([10, 30]), np.array([1.0, 3.0]), np.array([0.1, 0.3]))}
    exposure = Scores(np.array([20, 30]), np.array([9.0, 9.0]), np.array([0.2, 0.05]))
    table = RecordTable.from_scores(ids, label, label == 0, scores, exposure=exposure, fdr=0.05)
    np.testing.assert_array_equal(table.scores["a"], [3.0, 1.0, np.nan])
    np.testing.assert_array_equal(table.p_values["a"], [0.3, 0.1, np.nan])
    np.testing.assert_array_equal(table.q_value, [0.05, np.nan, 0.2])
    np.testing.assert_array_equal(table.exposed, [True, False, False])


def test_the_table_takes_ids_that_are_strings(tmp_path):
    ids = np.array(["b", "a"])
    scores = {"a": Scores(np.array(["a"]), np.array([1.0]))}
    table = RecordTable.from_scores(ids, np.array([0, 1]), np.array([True, False]), scores)
    folder = replace(small(), records=table).save(tmp_path)
    assert pq.read_table(folder / "records.parquet")["id"].to_pylist() == ["b", "a"]
    assert pq.read_table(folder / "records.parquet")["score_a"].to_pylist() == [None, 1.0]


def test_the_table_refuses_what_does_not_fit():
    ids, label = np.array([1, 2]), np.array([0, 1])
    foreign = {"a": Scores(np.array([5]), np.array([1.0]))}
    with pytest.raises(InvalidInput, match="got a foreign id"):
        RecordTable.from_scores(ids, label, label == 0, foreign)
    with pytest.raises(InvalidInput, match="expected 2 values in column 'score_a'"):
        RecordTable(ids, label, label == 0, {"a": np.zeros(3)})


def test_nan_never_reaches_the_file(tmp_path):
    finding = replace(small_finding("loss", 0.6), seconds=float("nan"))
    with pytest.raises(InvalidInput, match=r"findings\[0\]\.seconds: expected a finite number"):
        replace(small(), findings=(finding,)).save(tmp_path)
    assert not list(tmp_path.iterdir())


def spoiled(tmp_path, change):
    path = small().save(tmp_path) / "report.json"
    path.write_bytes(change(path.read_bytes()))
    return tmp_path


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda b: b[: len(b) // 2], "is not JSON"),
        (lambda b: b"", "is not JSON"),
        (lambda b: b"\xff\xfe\x00" + b, "is not JSON"),
        (lambda b: b"[" * 100_000, "is not JSON"),
        (lambda b: b.replace(b'"seed": 0', b'"seed": NaN'), "NaN is not a JSON number"),
        (lambda b: b.replace(b'"seed": 0', b'"seed": "0"'), r"report\.provenance\.seed"),
        (lambda b: b.replace(b'"seconds": 0.25', b'"seconds": 1e400'), "expected a finite number"),
        (lambda b: b.replace(b'"findings"', b'"found"'), "expected the key 'findings'"),
        (lambda b: b.replace(b"report/1", b"report/2"), "expected a report of schema"),
        (lambda b: b'{"name": "something else"}', "expected a report of schema .* got None"),
        (lambda b: b"[1, 2]", "expected a report of schema"),
    ],
)
def test_a_damaged_or_foreign_file_is_refused_in_one_sentence(tmp_path, change, message):
    with pytest.raises(DamagedFile, match=message) as caught:
        Report.load(spoiled(tmp_path, change))
    assert "\n" not in str(caught.value)
    assert "report.json" in str(caught.value)


def test_an_empty_folder_is_not_a_damaged_one(tmp_path):
    with pytest.raises(StoreError, match="expected a report.json in .* found none") as caught:
        Report.load(tmp_path)
    assert not isinstance(caught.value, DamagedFile)


def test_a_file_in_the_way_of_the_folder(tmp_path):
    (tmp_path / "taken").write_text("")
    with pytest.raises(StoreError, match="cannot be made a folder"):
        small().save(tmp_path / "taken")


def test_a_full_disk_leaves_the_old_report(tmp_path, monkeypatch):
    folder = small().save(tmp_path)
    before = (folder / "report.json").read_bytes()

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StoreError, match="No space left on device"):
        replace(small(), name="other").save(folder)
    assert (folder / "report.json").read_bytes() == before
    assert not list(folder.glob("*.tmp")) and not list(folder.glob(".*.tmp"))


def test_the_truth_is_written_before_it_is_drawn(tmp_path, monkeypatch):
    def broken(report, folder):
        raise RuntimeError("cannot draw")

    monkeypatch.setattr(files, "write_html", broken)
    with pytest.raises(RuntimeError):
        small().save(tmp_path)
    assert Report.load(tmp_path) == small()


def test_a_report_prints_as_an_aligned_table():
    lines = str(small()).splitlines()
    assert lines[0].startswith("small: The model gives away part")
    assert lines[2:5] == [
        "attack       AUC                  TPR at 1% FPR    TPR at 0.1% FPR  models  queries",
        "lira_online  0.71 (0.68 to 0.74)  12% (9% to 15%)  not resolvable       64    1,000",
        "loss         0.58 (0.55 to 0.61)  12% (9% to 15%)  not resolvable        0    1,000",
    ]
    assert lines[-1] == "warning: TPR at 0.1% FPR needs 1,000 non-members."


RISK_LINES = {
    "3 of 1,000 records stand out before the model is asked (gmia), 2 of them members; at "
    "p <= 0.01 it recognizes 100% (2% to 100%) of these, and 0% (0% to 98%) of the non-members. "
    "At a false discovery rate of 5%, 1 is recognized.": {},
    "No record of 1,000 stands out before the model is asked (gmia).": {"n_standing_out": 0},
    "3 of 1,000 records stand out before the model is asked (gmia), 2 of them members; none "
    "could be tested.": {"n_tested": 0},
    "3 of 1,000 records stand out before the model is asked (gmia), 2 of them members; at "
    "p <= 0.01 the share recognized is not resolvable. At a false discovery rate of 5%, 1 is "
    "recognized.": {"recognized": unresolved(), "mistaken": unresolved()},
    "3 of 1,000 records stand out before the model is asked (gmia), 2 of them members; at "
    "p <= 0.01 the share recognized is not resolvable. At a false discovery rate of 5%, who is "
    "recognized is not resolvable by ranks among so few reference models.": {
        "recognized": unresolved(),
        "mistaken": unresolved(),
        "n_discovered": None,
        "n_members_discovered": None,
    },
    "All 1,000 records are looked at (gmia), 2 of them members; at p <= 0.01 it recognizes 100% "
    "(2% to 100%) of these, and 0% (0% to 98%) of the non-members. At a false discovery rate of "
    "5%, 1 is recognized.": {"n_standing_out": 1000},
}


@pytest.mark.parametrize("line", RISK_LINES)
def test_records_at_risk_are_a_line(line):
    found = replace(small_risk(), **RISK_LINES[line])
    assert line in str(replace(small(), records_at_risk=found)).splitlines()


def test_the_exposed_are_a_line_that_names_the_attack_and_all_members():
    line = (
        "lira_online recognizes 2 of 500 members one by one, at a false discovery rate of 5%, by "
        "Benjamini-Hochberg on rank p-values."
    )
    assert line in str(small()).splitlines()
    some = replace(small(), exposed_records=replace(small_exposed(), n_tested=273))
    assert "lira_online recognizes 2 of 500 members, 273 of them scored, one by one" in str(some)


def test_counts_that_are_not_resolvable_are_null(tmp_path):
    unknown = replace(small_risk(), n_discovered=None, n_members_discovered=None)
    report = replace(small(), records_at_risk=unknown)
    assert Report.load(report.save(tmp_path)) == report
    jsonschema.validate(report.to_json(), schema(), cls=jsonschema.Draft202012Validator)


def test_an_attack_that_abstained_says_how_many_it_scored():
    finding = replace(small_finding("loss", 0.6), n_abstained=3000)
    assert "\nloss (1,000 of 4,000)  0.60" in str(replace(small(), findings=(finding,)))


def test_an_empty_report_prints():
    assert "small: " in str(replace(small(), findings=(), exposed_records=None, warnings=()))

"""A report in which every text that somebody else chose tries to be something else."""

from dataclasses import replace

from example import PNG, small, small_finding, unresolved

from vestige.report import (
    Data,
    ExposedRecord,
    Finding,
    ImagePreview,
    Report,
    ReportWarning,
    Reproduce,
    RiskyRecord,
    RowPreview,
)

SCRIPT = "<script>window.pwned = 1; alert(1)</script>"
BREAKOUT = "\"'><img src=x onerror=window.pwned=1><svg onload=window.pwned=1>"
STYLE = "</style></title></svg>]]><script>window.pwned=1</script>"
ODD = "_$\\frac{1}$ \x00\x1b\n {{ 7*7 }} {% raw %} 表 \U0001f600 javascript:alert(1)"
LONG = "x" * 500
NAMES = (SCRIPT, BREAKOUT, STYLE, ODD, LONG)


def hostile() -> Report:
    report = small()
    findings = tuple(_finding(name, i) for i, name in enumerate(NAMES))
    records = tuple(_record(name, i) for i, name in enumerate(NAMES))
    risky = tuple(_risky(name, i) for i, name in enumerate(NAMES))
    assert report.exposed_records is not None and report.records_at_risk is not None
    return replace(
        report,
        name=SCRIPT,
        verdict=replace(report.verdict, sentence=SCRIPT, meaning=BREAKOUT, attack=BREAKOUT),
        target=replace(report.target, name=STYLE, kind=SCRIPT, description=BREAKOUT),
        data=Data(BREAKOUT, 5, 5, 0, (2,), NAMES, SCRIPT, STYLE),
        exchangeability=replace(report.exchangeability, reason=SCRIPT),
        findings=findings,
        exposed_records=replace(
            report.exposed_records, attack=SCRIPT, method=BREAKOUT, records=records
        ),
        records_at_risk=replace(
            report.records_at_risk,
            attack=SCRIPT,
            method=BREAKOUT,
            features=STYLE,
            mistaken=unresolved(STYLE),
            records=risky,
        ),
        warnings=tuple(ReportWarning(name, name) for name in NAMES),
        reproduce=Reproduce(SCRIPT + LONG, STYLE),
        provenance=replace(
            report.provenance, vestige=BREAKOUT, date=SCRIPT, platform=STYLE, digests={SCRIPT: LONG}
        ),
    )


def _finding(name: str, i: int) -> Finding:
    finding = small_finding(name, 0.6 + i / 100)
    return replace(
        finding,
        title=name,
        source=name,
        question=name,
        threat_model=replace(finding.threat_model, access=name, knowledge=name),
        config={name: name, "nested": [name]},
        metrics={**finding.metrics, name: finding.metrics["auc"]},
        per_class=tuple(replace(item, name=name) for item in finding.per_class),
        roc=replace(finding.roc, method=name),
        warnings=(name,),
    )


def _record(name: str, i: int) -> ExposedRecord:
    preview = RowPreview(values={name: name}) if i % 2 else ImagePreview(png=PNG, width=4, height=4)
    return ExposedRecord(name, i, name, 1.0, 0.01, 0.02, True, preview)


def _risky(name: str, i: int) -> RiskyRecord:
    rows, picture = RowPreview(values={name: name}), ImagePreview(png=PNG, width=4, height=4)
    one, other = (rows, picture) if i % 2 else (picture, rows)
    return RiskyRecord(name, i, name, True, 0, 0.01, 1e-9, 0.1, False, name, name, 0.5, one, other)

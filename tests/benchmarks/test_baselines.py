"""The documentation's measured tables are those of the baselines that benchmarks record."""

from __future__ import annotations

import copy
import json
import sys
from pathlib import Path

import pytest

from benchmarks import baseline, tables
from benchmarks.baseline import (
    SCHEMA,
    Table,
    benchmark_parser,
    exit_code,
    mean_of,
    measurement,
    median_of,
    per_second,
    write_results,
)

FILES = sorted(tables.BASELINES.glob("*.json"))
PAGE = "Rates:\n\n<!-- baseline: rates/cores -->\nold\n<!-- end -->\n\nMore.\n"


@pytest.fixture
def baselines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for module in (baseline, tables):
        monkeypatch.setattr(module, "BASELINES", tmp_path)
    return tmp_path


def recorded(monkeypatch: pytest.MonkeyPatch, rows: list[dict], *options: str) -> None:
    monkeypatch.setattr(sys, "argv", ["rates.py", "--baseline", *options])
    arguments = benchmark_parser("rates", "Rates.").parse_args()
    write_results(arguments, rows, lambda of: {"cores": Table(rows=of, statistic="median of 3")})


def test_every_page_shows_what_the_baselines_hold() -> None:
    assert [page for page, _, _ in tables.changed_pages(tables.ROOT)] == []
    assert tables.main(["--check"]) == 0


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_baseline_says_where_its_numbers_come_from(file: Path) -> None:
    content = json.loads(file.read_text(encoding="utf-8"))
    assert content["schema"] == SCHEMA
    for name, table in content["tables"].items():
        run = table["run"]
        assert run["recorded"] == "measured" or run["recorded"].startswith("transcribed from ")
        assert run["command"]
        assert run["date"]
        assert set(run["device"]) == {"cpu", "cores", "amx", "avx512_bf16", "gpu"}
        assert len(tables.table_lines(table, where=name)) == 2 + len(table["rows"])


def test_every_recorded_table_is_on_a_page() -> None:
    pages = "".join(
        page.read_text(encoding="utf-8")
        for pattern in tables.PAGES
        for page in tables.ROOT.glob(pattern)
    )
    held = {f"{f.stem}/{name}" for f in FILES for name in json.loads(f.read_text())["tables"]}
    assert {table for table in held if f"<!-- baseline: {table} -->" not in pages} == set()


def test_a_changed_number_fails_the_check_and_rendering_fixes_it(
    baselines: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recorded(monkeypatch, [{"cores": "one", "rate": measurement(12.345)}])
    monkeypatch.setattr(tables, "ROOT", baselines)
    page = baselines / "README.md"
    page.write_text(PAGE)
    assert tables.main(["--check"]) == 1
    assert page.read_text() == PAGE
    assert "+| one | 12.3 |\n" in capsys.readouterr().out
    assert tables.main([]) == 0
    assert tables.main(["--check"]) == 0
    text = page.read_text()
    assert "| cores | rate |\n|---|---:|\n| one | 12.3 |\n" in text
    page.write_text(text.replace("12.3", "12.4"))
    assert tables.main(["--check"]) == 1
    assert "-| one | 12.4 |\n+| one | 12.3 |\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("<!-- baseline: rates/cores -->\n\n| a |\n", "markers in pairs"),
        ("| a |\n<!-- end -->\n", "markers in pairs"),
        ("<!-- baseline: rates/rows -->\n<!-- end -->\n", "a table 'rows'"),
    ],
)
def test_a_marker_that_leads_nowhere_is_an_error(
    baselines: Path, monkeypatch: pytest.MonkeyPatch, text: str, reason: str
) -> None:
    recorded(monkeypatch, [{"cores": "one"}])
    with pytest.raises(tables.BaselineError, match=reason):
        tables.rendered(text, where="page.md")


def test_recording_again_keeps_the_columns_and_the_other_tables(
    baselines: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorded(monkeypatch, [{"cores": "one", "rate": measurement(1.0)}])
    file = baselines / "rates.json"
    content = json.loads(file.read_text())
    content["tables"]["cores"]["columns"][1]["title"] = "images/s"
    content["tables"]["other"] = content["tables"]["cores"]
    file.write_text(json.dumps(content))
    recorded(monkeypatch, [{"cores": "two", "rate": measurement(2.0)}])
    again = json.loads(file.read_text())["tables"]
    assert again["other"] == content["tables"]["other"]
    lines = tables.table_lines(again["cores"], where="")
    assert lines == ["| cores | images/s |", "|---|---:|", "| two | 2.00 |"]
    with pytest.raises(tables.BaselineError, match="no value for"):
        content["tables"]["cores"]["columns"][1]["cell"] = "{rate:.1f}"
        file.write_text(json.dumps(content))
        recorded(monkeypatch, [{"cores": "three"}])
    assert json.loads(file.read_text()) == content


def test_a_record_names_the_machine_and_the_command_without_its_files(
    baselines: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    command = ["rates.py", "--fast", "--json", f"{tmp_path / 'rates.txt'}", "--baseline", "mine"]
    monkeypatch.setattr(sys, "argv", command)
    parser = benchmark_parser("rates", "Rates.\n\nMore.", check="exit 1 when slow")
    parser.add_argument("--fast", action="store_true")
    arguments = parser.parse_args()
    write_results(
        arguments, {"rate": 1}, lambda _: {"cores": Table(rows=[{"rate": measurement(1.0)}])}
    )
    assert json.loads((tmp_path / "rates.txt").read_text()) == {"rate": 1}
    content = json.loads((baselines / "mine.json").read_text())
    assert content["benchmark"] == "benchmarks.rates"
    run = content["tables"]["cores"]["run"]
    assert (run["recorded"], run["command"]) == ("measured", "python -m benchmarks.rates --fast")
    assert run["device"]["cores"] >= 1
    assert run["libraries"]["python"].startswith("3.")
    assert exit_code(arguments, ["too slow"]) == 0
    assert exit_code(parser.parse_args(["--check"]), ["too slow"]) == 1
    assert exit_code(parser.parse_args(["--check"]), []) == 0


def test_a_spread_is_that_of_the_samples_and_unknown_without_them() -> None:
    assert measurement(2.0) == {"value": 2.0, "spread": None}
    samples = [1.0, 2.0, 6.0]
    measured = measurement(median_of(samples))
    assert (measured["value"], measured["spread"]) == (2.0, pytest.approx(7**0.5))
    assert (measured["repetitions"], measured["least"], measured["most"]) == (3, 1.0, 6.0)
    error = measurement(mean_of(samples), standard_error=True)
    assert (error["value"], error["spread"]) == (3.0, pytest.approx((7 / 3) ** 0.5))
    assert measurement(per_second(6, median_of(samples)))["most"] == 6.0
    assert measurement(median_of([1.0])) == {"value": 1.0, "spread": None, "repetitions": 1}


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("{share:1pct} %", "12.3 %"),
        ("{share:+1pct}", "+12.3"),
        ("{rate:short} to {many:short}", "8.4 to 212"),
        ("{small:2sig}, {rate:2sig}, {many:2sig}", "0.22, 8.4, 210"),
        ("{near:2sig}, {none:2sig}", "1.0, 0.0"),
        ("{none:sci} or {small:sci}", "0 or 2.2e-01"),
        ("{rate:.1f} ± {rate.spread:.1f}", "8.4 ± 0.3"),
        (["{unknown} or {rate}", "{list.1}"], "second"),
        (["{share.spread}", ""], ""),
    ],
)
def test_cells_are_filled_from_rows(template: str | list[str], expected: str) -> None:
    row = {
        "share": {"value": 0.1234, "spread": None},
        "rate": {"value": 8.4, "spread": 0.3},
        "many": 212,
        "small": 0.22,
        "none": 0,
        "near": 0.99994,
        "list": ["first", "second"],
    }
    assert tables.cell(template, row, where="row") == expected


def test_a_copied_number_keeps_its_samples() -> None:
    number = median_of([1.0, 3.0, 2.0])
    copied = copy.deepcopy(number)
    assert (copied, copied.samples) == (2.0, (1.0, 3.0, 2.0))

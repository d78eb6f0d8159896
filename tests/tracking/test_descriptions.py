import pytest

from tracking.descriptions import describe, pipeline_description, results_table
from tracking.names import experiment_name, grouped, pipeline_name, retrieval_metrics


def test_the_best_of_each_column_is_bold_and_a_gap_is_a_dash() -> None:
    table = results_table(
        {
            "CLIP": {"syn-station/mAP": 0.2484, "syn-station/rank-1": 0.5},
            "MUVA": {"syn-station/mAP": 0.3589},
        }
    )
    assert table.splitlines() == [
        "| | syn-station mAP | syn-station rank-1 |",
        "|---|---:|---:|",
        "| CLIP | 24.8 | **50.0** |",
        "| MUVA | **35.9** | – |",
    ]


def test_a_description_has_summary_results_and_command() -> None:
    text = describe(
        "Three domains to one.",
        results={"MUVA": {"d/mAP": 0.5}},
        facts={"target": "d"},
        command="muva run demo",
    )
    assert text == (
        "Three domains to one.\n\n| | d mAP |\n|---|---:|\n| MUVA | 50.0 |\n\n- **target**: d\n\n"
        "Reproduce with\n\n```bash\nmuva run demo\n```"
    )


def test_a_pipeline_compares_methods_on_each_target() -> None:
    text = pipeline_description(
        {"d": {"CLIP": (0.2, 0.3), "MUVA": (0.4, 0.5)}, "e": {"MUVA": (0.1, 0.2)}},
        valid_queries={"d": "24 of 24", "e": "1 of 24"},
        command="muva run demo",
    )
    assert "| | d mAP | d rank-1 | e mAP | e rank-1 |" in text
    assert "| CLIP | 20.0 | 30.0 | – | – |" in text
    assert "| MUVA | **40.0** | **50.0** | **10.0** | **20.0** |" in text
    assert "- **valid queries of e**: 1 of 24" in text
    assert "```bash\nmuva run demo\n```" in text


def test_metrics_have_the_projects_names_and_stay_fractions() -> None:
    metrics = retrieval_metrics("market1501", mean_ap=0.5, cmc={10: 0.9, 1: 0.7}, mean_inp=0.2)
    assert metrics == {
        "market1501/mAP": 0.5,
        "market1501/rank-1": 0.7,
        "market1501/rank-10": 0.9,
        "market1501/mINP": 0.2,
    }
    assert grouped("stage2", {"loss": 1.0}) == {"stage2/loss": 1.0}


def test_names_read_from_sources_to_targets() -> None:
    assert pipeline_name("demo", sources=["a", "b"], targets=["c"]) == "a+b -> c · demo"
    assert experiment_name("demo") == "muva/demo"


def test_a_run_within_a_ray_job_links_to_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MUVA_JOB", "muva-run-0-1")
    assert describe("Three domains.").endswith("Ray job: muva-run-0-1")
    monkeypatch.setenv("MUVA_JOB_LINK", "http://head:8265/#/jobs/muva-run-0-1")
    linked = "[muva-run-0-1](http://head:8265/#/jobs/muva-run-0-1)"
    assert describe("Three domains.").endswith(f"Ray job: {linked}")

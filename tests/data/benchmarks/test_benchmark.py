"""Facts about public data sets agree with their readers, and are compared with copies."""

from dataclasses import replace

import pytest

from muva.data.benchmarks import BENCHMARKS, READERS, read_tree
from muva.data.benchmarks.benchmark import Counts, counts_differ, is_complete
from muva.errors import MuvaError
from tests.data.benchmarks.trees import tree

DUKE = {
    "bounding_box_train": ["0001_c2_f0046182.jpg"],
    "query": ["0005_c2_f0046985.jpg"],
    "bounding_box_test": ["0005_c5_f0051341.jpg", "7139_c2_f0160815.jpg"],
}
ONE = Counts(images=1, identities=1, cameras=1)


@pytest.mark.parametrize("name", BENCHMARKS)
def test_a_public_data_set_has_a_reader_that_takes_its_options(tmp_path, name):
    benchmark = BENCHMARKS[name]
    assert benchmark.layout in READERS
    with pytest.raises(MuvaError, match="found nothing"):
        read_tree(benchmark.layout, tmp_path / "none", domain=name, options=benchmark.options)


@pytest.mark.parametrize(
    ("gallery", "complete"),
    [
        (Counts(images=2, identities=2, cameras=2), True),
        (Counts(images=None, identities=2, cameras=None), True),
        (Counts(images=3, identities=2, cameras=2), False),
        (Counts(images=None, identities=3, cameras=2), False),
    ],
)
def test_a_copy_is_complete_when_all_published_counts_are_its_own(tmp_path, gallery, complete):
    records = read_tree("dukemtmc", tree(tmp_path, DUKE), domain="d")
    counts = {"train": ONE, "query": ONE, "gallery": gallery}
    assert is_complete(replace(BENCHMARKS["dukemtmc"], counts=counts), records) is complete


def test_a_missing_split_is_not_complete(tmp_path):
    records = read_tree("dukemtmc", tree(tmp_path, DUKE), domain="d")
    assert not is_complete(replace(BENCHMARKS["dukemtmc"], counts={"train": ONE}), records)


def test_counts_that_differ_are_shown_beside_the_published_ones(tmp_path):
    records = read_tree("dukemtmc", tree(tmp_path, DUKE), domain="d")
    message = str(counts_differ(BENCHMARKS["dukemtmc"], records, where=str(tmp_path)))
    assert "gallery  identities      1110         2  differs" in message
    unknown = {"gallery": Counts(images=None, identities=2, cameras=2)}
    message = str(
        counts_differ(replace(BENCHMARKS["dukemtmc"], counts=unknown), records, where="x")
    )
    assert "gallery  identities         2         2\n" in message
    assert "gallery  images" not in message

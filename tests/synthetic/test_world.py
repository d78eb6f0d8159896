"""The open world: networks are functions of their numbers, and their labels are exact."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import numpy as np
import pytest

from benchmarks.picture_statistics import compared, image_statistics, located, percentiles
from muva.config import SyntheticConfig
from muva.synthetic import (
    BENCHMARK,
    PRETRAINING,
    REAL_LOOK,
    image_count,
    is_synthetic,
    networks_in,
    render,
    synthetic_records,
)
from muva.synthetic.caption import caption
from muva.synthetic.crowd import people_behind
from muva.synthetic.cutout import Cutout, cut_out
from muva.synthetic.domain import find_domain
from muva.synthetic.figure import Walk
from muva.synthetic.identity import Identity, _in_domain, _in_open_world, double_of, identity
from muva.synthetic.rendering import part_boxes
from muva.synthetic.seeds import generator
from muva.synthetic.site import site
from muva.synthetic.surface import NO_PART
from muva.synthetic.world import network, network_name, networks_of

NETWORKS = [network_name(number) for number in (0, 1, 7)]


def digest(name: str, pid: int, camid: int, index: int = 0) -> str:
    shot = render(name, pid=pid, camid=camid, index=index, height=128, width=64)
    return hashlib.sha256(shot.image.tobytes() + shot.part_map.tobytes()).hexdigest()


def test_a_network_is_a_function_of_its_number() -> None:
    keys = [(name, pid, camid) for name in NETWORKS for pid in (1, 2) for camid in (1, 3)]
    first = [digest(*key) for key in keys]
    for cached in (network, site, _in_domain, _in_open_world):
        cached.cache_clear()
    assert [digest(*key) for key in reversed(keys)] == first[::-1]
    assert len(set(first)) == len(first)


@pytest.mark.parametrize("name", NETWORKS)
def test_labels_are_those_of_the_part_map(name: str) -> None:
    for camid in (1, 2, 3, 4):
        shot = render(name, pid=3, camid=camid, index=0, height=128, width=64)
        assert shot.boxes == part_boxes(shot.part_map)
        assert shot.image.shape == (128, 64, 3)


def test_networks_differ_in_clothes_cameras_and_places() -> None:
    domains = [find_domain(name) for name in map(network_name, range(40))]
    assert len({f"{domain.wardrobe}" for domain in domains}) == 40
    assert {domain.cameras for domain in domains} == {4, 5, 6, 7, 8}
    assert {domain.scene.backdrop for domain in domains} == {"indoors", "outdoors"}


def test_a_double_wears_the_same_colours() -> None:
    name = network_name(3)
    doubles = [pid for pid in range(2, 80, 2) if double_of(name, pid)]
    assert doubles
    for pid in doubles:
        person, model = identity(name, pid), identity(name, pid - 1)
        np.testing.assert_array_equal(person.colours.shades["top"], model.colours.shades["top"])
        assert person != model


def test_a_data_set_has_the_people_and_cameras_of_its_networks() -> None:
    name = "syn-world-4-6"
    assert networks_of(name) == tuple(map(network_name, (4, 5, 6)))
    records = list(
        synthetic_records(
            name, train_people=4, test_people=2, images_per_camera=2, height=32, width=16
        )
    )
    assert len(records) == image_count(name, train_people=4, test_people=2, images_per_camera=2)
    assert {record.pid for record in records} == {1, 2, 3, 4, 5, 6}
    assert {record.pid for record in records if record.split == "train"} == {1, 2, 3, 4}
    assert len({record.image_id for record in records}) == len(records)
    cameras = [find_domain(network).cameras for network in networks_of(name)]
    seen = {pid: {record.camid for record in records if record.pid == pid} for pid in (1, 3, 5)}
    assert seen[1] == set(range(1, cameras[0] + 1))
    assert seen[3] == set(range(cameras[0] + 1, sum(cameras[:2]) + 1))
    assert seen[5] == set(range(sum(cameras[:2]) + 1, sum(cameras) + 1))


def test_a_data_set_is_that_of_its_networks_together() -> None:
    people = SyntheticConfig(train_people=4, test_people=3, height=32, width=16).model_dump()
    name = "syn-world-4-6"
    whole = {one.image_id: one for one in synthetic_records(name, **people)}
    shares = [
        record
        for network in networks_in(name)
        for record in synthetic_records(name, **people, network=network)
    ]
    assert len(shares) == len(whole)
    assert {one.image_id: one for one in shares} == whole
    assert networks_in("syn-mall") == ("syn-mall",)


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("syn-world-0-19", True),
        ("syn-mall", True),
        ("syn-world", False),
        ("syn-world-5-4", False),
        ("syn-world-x-4", False),
    ],
)
def test_names_of_synthetic_data_sets(name: str, known: bool) -> None:
    assert is_synthetic(name) == known


def test_statistics_of_plain_pictures() -> None:
    grey = np.full((128, 64, 3), 128, np.uint8)
    found = image_statistics(grey)
    assert found["L"] == pytest.approx(53.6, abs=0.1)
    assert found["sharp"] == found["noise"] == found["Lstd"] == 0
    halves = grey.copy()
    halves[:, :32] = 255
    found = image_statistics(halves)
    assert found["clip_hi"] == 0.5
    assert found["sharp"] > 10


def crowd_of(networks: int) -> list[Identity]:
    return [
        identity(network_name(number), pid) for number in range(networks) for pid in range(1, 13)
    ]


def test_people_wear_and_carry_what_the_named_domains_do_not_have() -> None:
    people = crowd_of(25)
    assert {person.headwear for person in people} == {
        *("", "cap", "beanie", "brimmed hat", "hood", "headscarf")
    }
    assert all(bool(person.headwear) == person.cap for person in people)
    assert {"bob", "afro"} < {person.hair_style for person in people}
    assert "shoulder bag" in {person.bag for person in people}
    assert any(person.boots_m > 0 for person in people)
    bearded = [person for person in people if person.beard]
    assert bearded and not any(person.female for person in bearded)
    named = [identity("syn-mall", pid) for pid in range(1, 60)]
    assert not any(person.headwear or person.beard or person.boots_m for person in named)


def test_captions_name_what_can_be_seen() -> None:
    for person in crowd_of(4):
        text = caption(person)
        assert not person.headwear or person.headwear in text
        assert ("a beard" in text) == person.beard
        assert ("boots" in text) == (person.boots_m > 0.1)


@pytest.mark.parametrize("what", ["rides", "umbrella_side", "pushes"])
def test_what_is_ridden_or_carried_is_drawn_and_is_no_part_of_the_person(what: str) -> None:
    name, camid = network_name(0), 1
    person, place = identity(name, 1), site(name, 1)
    plain = Walk(amplitude=1.0, arm_spread_deg=8, phone_side=0, heading_deg=70)
    walk = replace(plain, **{what: 1})

    def cutout(walk: Walk) -> Cutout:
        return cut_out(person, walk, place, generator("a test", name, camid), height=128, width=64)

    with_it, without = cutout(walk), cutout(plain)
    assert not np.array_equal(with_it.layer, without.layer)
    if what == "rides":  # the vehicle covers more than the person, and lifts the feet
        covered = with_it.layer[..., 3] > 0.5
        assert (covered & (with_it.part_map == NO_PART)).sum() > 40
    assert set(np.unique(with_it.part_map)) <= {0, 1, 2, 3}


def test_people_behind_stand_on_the_ground_and_shrink_with_distance() -> None:
    low = (name for name in map(network_name, range(99)) if find_domain(name).view.height_m[1] < 2)
    name = next(low)
    place = site(name, 1)
    window = cut_out(
        identity(name, 1),
        Walk(amplitude=0.0, arm_spread_deg=8, phone_side=0, heading_deg=0),
        place,
        generator("a test", name),
        height=128,
        width=64,
    ).window
    heights = []
    for number in range(40):
        rng = generator("people behind", number)
        for layer in people_behind(name, 1, window, rng, height=128, width=64):
            rows = np.flatnonzero((layer[..., 3] > 0.5).any(axis=1))
            if len(rows) and rows[0] > 0 and rows[-1] < 127:
                heights.append((int(rows[-1]), int(rows[-1] - rows[0])))
    assert len(heights) > 8
    feet, tall = np.array(sorted(heights)).T
    assert np.corrcoef(feet, tall)[0, 1] > 0.8  # whoever is lower in the image is nearer


@pytest.mark.parametrize("name", REAL_LOOK)
def test_domains_with_the_look_of_real_cameras_are_data_sets(name: str) -> None:
    assert is_synthetic(name)
    records = list(
        synthetic_records(
            name, train_people=0, test_people=2, images_per_camera=2, height=32, width=16
        )
    )
    assert len(records) == 2 * 2 * find_domain(name).cameras
    assert name not in {*BENCHMARK, *PRETRAINING}


def test_a_domain_whose_median_is_not_that_of_real_cameras_is_named() -> None:
    real = {"one": {"L": [0, 10, 20, 30, 40]}, "two": {"L": [0, 25, 30, 35, 50]}}
    medians = {"near": {"L": [0, 0, 34, 99, 99]}, "far": {"L": [0, 10, 36, 40, 50]}}
    (row,) = located(medians, real)
    assert row["outside"] == ["far"]
    assert row["real"] == "10 to 35"


def test_a_real_camera_that_is_not_covered_is_named() -> None:
    world = percentiles([{"L": float(value)} for value in range(101)])
    (row,) = compared(world, {"one": {"L": [0, 10, 20, 30, 40]}, "two": {"L": [0, 2, 20, 96, 99]}})
    assert row["outside"] == ["two"]
    assert not row["covered"]

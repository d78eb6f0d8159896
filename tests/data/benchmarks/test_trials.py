"""Random splits are reproducible, independent of the order of records, and fair."""

import random

import pytest

from muva.data.benchmarks.trials import random_halves, random_pairs
from muva.data.records import Record


def record(split, pid, image):
    return Record(
        domain="d", image_id=f"{split}/{pid}{image}", split=split, pid=pid, camid=None, source=b""
    )


def people(number, *, images="ab", distractors=0):
    """One query per person, other images in the gallery, and further people in the gallery."""
    return [
        *(record("query", pid, images[0]) for pid in range(1, number + 1)),
        *(record("gallery", pid, i) for pid in range(1, number + 1) for i in images[1:]),
        *(record("gallery", 1000 + other, "x") for other in range(distractors)),
    ]


def test_trials_never_change():
    # for i in 1 2 3 4 5 6; do printf "viper/0/$i" | sha256sum | sed "s/$/ $i/"; done | sort
    first, second, *_ = random_halves(people(6), name="viper")
    assert first.query == ("query/2a", "query/4a", "query/5a")
    assert first.gallery == ("gallery/2b", "gallery/4b", "gallery/5b")
    assert second.query == ("query/3a", "query/4a", "query/5a")
    # the same with "ilids/0/$i", then with "ilids/0/$person/$person$image.jpg"
    images = [
        Record(domain="d", image_id=f"{pid}{i}.jpg", split="query", pid=pid, camid=None, source=b"")
        for pid in (1, 2, 3)
        for i in "abc"
    ]
    first, *_ = random_pairs(images, name="ilids")
    assert first.query == ("2b.jpg", "3b.jpg")
    assert first.gallery == ("2a.jpg", "3a.jpg")


@pytest.mark.parametrize("draw", [random_halves, random_pairs])
def test_trials_do_not_depend_on_the_order_of_records(draw):
    records = people(30, images="abcd", distractors=5)
    trials = draw(records, name="d")
    for seed in range(3):
        shuffled = random.Random(seed).sample(records, len(records))
        assert draw(shuffled, name="d") == trials


@pytest.mark.parametrize("draw", [random_halves, random_pairs])
def test_each_trial_and_each_data_set_has_another_split(draw):
    records = people(30)
    trials = draw(records, name="d") + draw(records, name="e")
    assert len({trial.query for trial in trials}) == 20


@pytest.mark.parametrize(("number", "tested"), [(632, 316), (200, 100), (119, 60), (2, 1), (1, 1)])
def test_half_of_the_people_are_tested_rounded_up(number, tested):
    assert {len(trial.query) for trial in random_halves(people(number), name="d")} == {tested}
    assert {len(trial.query) for trial in random_pairs(people(number), name="d")} == {tested}


def test_the_other_half_is_left_out_and_people_without_a_query_are_in_every_gallery():
    for trial in random_halves(people(9, images="abc", distractors=3), name="d"):
        tested = {image_id[6] for image_id in trial.query}
        others = {f"gallery/{1000 + other}x" for other in range(3)}
        assert set(trial.gallery) - others == {f"gallery/{pid}{i}" for pid in tested for i in "bc"}
        assert others <= set(trial.gallery)


def test_each_person_has_one_query_and_another_image_in_the_gallery():
    records = people(9, images="abcd", distractors=3)
    pid_of = {r.image_id: r.pid for r in records}
    drawn = set()
    for trial in random_pairs(records, name="d"):
        query_pids = [pid_of[image_id] for image_id in trial.query]
        assert query_pids == [pid_of[image_id] for image_id in trial.gallery]
        assert query_pids == sorted(set(query_pids))
        assert not set(trial.query) & set(trial.gallery)
        assert max(query_pids) < 1000  # people with a single image are left out
        drawn |= {image_id[-1] for image_id in trial.query}
    assert drawn == set("abcd")


def test_people_are_tested_equally_often():
    trials = [set(trial.query) for trial in random_halves(people(632), name="viper")]
    times = [sum(f"query/{pid}a" in t for t in trials) for pid in range(1, 633)]
    # Binomial: mean 5, variance 2.5; two halves share 158 people, give or take 6.3.
    assert abs(sum((t - 5) ** 2 for t in times) / 632 - 2.5) < 0.5
    shared = [len(a & b) for i, a in enumerate(trials) for b in trials[:i]]
    assert all(abs(number - 158) < 4 * 6.3 for number in shared)

"""Identities: doubles, captions, and shares of attributes."""

import re

import numpy as np
import pytest

from muva.synthetic import DOMAINS
from muva.synthetic.caption import caption, vocabulary_texts
from muva.synthetic.identity import DOUBLE_SHARE, double_of, identity, stranger

PIDS = range(1, 201)


@pytest.fixture(params=DOMAINS)
def domain(request) -> str:
    return request.param


def doubles(domain: str) -> list[tuple[int, int]]:
    found = [(pid, double_of(domain, pid)) for pid in PIDS]
    return [(pid, model) for pid, model in found if model is not None]


def test_about_the_stated_share_of_pairs_are_doubles(domain):
    share = len(doubles(domain)) / (len(PIDS) / 2)
    assert share == pytest.approx(DOUBLE_SHARE, abs=0.16)


def test_a_double_wears_the_same_colours_in_another_cut(domain):
    for pid, model in doubles(domain):
        person, other = identity(domain, pid), identity(domain, model)
        assert person.colours.names == other.colours.names
        hats_differ = DOMAINS[domain].open_world
        for name, shade in person.colours.shades.items():
            if name != "cap" or not hats_differ:
                np.testing.assert_array_equal(shade, other.colours.shades[name])
        assert person.female == other.female
        cuts = ("top", "bottom", "pattern", "bag", "hair_style", "cap")
        differ = sum(getattr(person, cut) != getattr(other, cut) for cut in cuts)
        assert differ >= 1 if hats_differ else differ == 2
        assert caption(person) != caption(other)


def test_no_person_is_the_double_of_a_double(domain):
    assert all(double_of(domain, model) is None for _, model in doubles(domain))


def test_people_wear_what_their_domain_wears(domain):
    wardrobe = DOMAINS[domain].wardrobe
    for pid in PIDS:
        person = identity(domain, pid)
        assert person.top in wardrobe.tops
        assert person.bottom in wardrobe.bottoms
        assert person.bag in ("none", *wardrobe.bags)
        assert person.colours.names["top"] in wardrobe.top_colours


def test_captions_use_only_words_of_the_stated_vocabulary():
    known = set(re.findall(r"\w+", " ".join(vocabulary_texts())))
    for domain in DOMAINS:
        for pid in PIDS:
            assert set(re.findall(r"\w+", caption(identity(domain, pid)))) <= known


def test_a_caption_names_the_attributes():
    person = identity("syn-airport", 4)
    text = caption(person)
    assert person.colours.names["top"] in text
    assert person.top in text or person.in_one_piece
    assert ("carrying" in text) == (person.bag != "none")
    assert ("a cap" in text) == person.cap
    assert not re.search(r"\ba [aeiou]", text)


def test_passers_by_are_not_among_the_identities():
    known = {identity("syn-mall", pid).body for pid in PIDS}
    strangers = [stranger("syn-mall", 1, number) for number in range(10)]
    assert len({person.body for person in strangers} - known) > 0
    assert len({caption(person) for person in strangers}) > 5

"""An image is a function of its key, and its labels are correct."""

import hashlib
import subprocess
import sys
from itertools import product

import numpy as np
import pytest

from muva.config import PARTS
from muva.errors import MuvaError
from muva.synthetic import (
    BENCHMARK,
    DOMAINS,
    PRETRAINING,
    REAL_LOOK,
    VARIED,
    SyntheticImage,
    render,
)
from muva.synthetic.identity import identity
from muva.synthetic.rendering import part_boxes
from muva.synthetic.site import site
from muva.synthetic.surface import PART_VALUES

HEIGHT, WIDTH = 128, 64
ADDRESSES = list(product(("syn-mall", "syn-airport"), (1, 2), (1, 3), (0, 1)))


def shot(domain: str, pid: int, camid: int, index: int) -> SyntheticImage:
    return render(domain, pid=pid, camid=camid, index=index, height=HEIGHT, width=WIDTH)


def digest(address: tuple[str, int, int, int]) -> str:
    image = shot(*address)
    content = [image.image.tobytes(), image.part_map.tobytes(), repr(image.boxes).encode()]
    return hashlib.sha256(b"".join(content)).hexdigest()


DIGESTS_IN_REVERSE = """
import sys
sys.path.insert(0, sys.argv[1])
from test_synthetic_render import ADDRESSES, digest
for address in reversed(ADDRESSES):
    print(digest(address))
"""


def test_another_process_in_another_order_renders_the_same_bytes():
    here = [digest(address) for address in ADDRESSES]
    there = subprocess.run(
        [sys.executable, "-c", DIGESTS_IN_REVERSE, str(__file__).rsplit("/", 1)[0]],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.split()
    assert here == there[::-1]


def test_images_with_different_keys_differ():
    digests = {digest(address) for address in ADDRESSES}
    assert len(digests) == len(ADDRESSES)


@pytest.mark.parametrize("domain", DOMAINS)
def test_boxes_are_the_tightest_around_the_part_map(domain):
    for pid, camid in product((1, 2, 3), (1, 3)):
        image = shot(domain, pid, camid, 0)
        for part in PARTS:
            rows, columns = np.nonzero(image.part_map == PART_VALUES[part])
            box = image.boxes[part]
            if box is None:
                assert len(rows) == 0
            else:
                x0, y0, x1, y1 = np.multiply(box, (WIDTH, HEIGHT, WIDTH, HEIGHT))
                assert (x0, y0) == (columns.min(), rows.min())
                assert (x1, y1) == (columns.max() + 1, rows.max() + 1)


@pytest.mark.parametrize("domain", DOMAINS)
def test_head_is_above_upper_body_and_upper_body_above_legs(domain):
    for pid in range(1, 7):
        part_map = shot(domain, pid, 1, 0).part_map
        heights = [
            np.nonzero(part_map == PART_VALUES[part])[0].mean()
            for part in PARTS
            if (part_map == PART_VALUES[part]).any()
        ]
        assert heights == sorted(heights)


def test_a_part_out_of_sight_has_no_box():
    part_map = np.zeros((8, 4), np.uint8)
    part_map[2, 1] = PART_VALUES["upper_body"]
    boxes = part_boxes(part_map)
    assert boxes == {"head": None, "upper_body": (0.25, 0.25, 0.5, 0.375), "legs": None}


def test_the_person_fills_the_crop_and_background_remains():
    shares = [
        (shot(domain, pid, 2, 0).part_map > 0).mean() for domain in DOMAINS for pid in range(1, 9)
    ]
    assert 0.12 < np.mean(shares) < 0.5


def test_some_of_the_people_are_occluded():
    # Without occluders every person shows both feet at the bottom of the crop.
    part_maps = [shot("syn-boulevard", pid, 1, 0).part_map for pid in range(1, 61)]
    without_feet = np.mean([(part_map[-24:] > 0).sum() == 0 for part_map in part_maps])
    assert 0 < without_feet < DOMAINS["syn-boulevard"].occluded


def test_images_of_one_person_share_their_caption_and_tracks_alternate():
    images = [shot("syn-harbour", 5, camid, index) for camid in (1, 4) for index in (0, 1, 2)]
    assert len({image.caption for image in images}) == 1
    assert [image.track for image in images] == [0, 1, 0, 0, 1, 0]


def test_a_smaller_image_is_the_same_with_less_detail():
    large = render("syn-campus", pid=3, camid=2, index=0, height=256, width=128)
    small = shot("syn-campus", 3, 2, 0)
    for part in PARTS:
        box, small_box = large.boxes[part], small.boxes[part]
        assert box is not None and small_box is not None
        np.testing.assert_allclose(box, small_box, atol=0.04)
    shrunk = large.image.reshape(128, 2, 64, 2, 3).mean(axis=(1, 3))
    assert np.abs(shrunk - small.image).mean() < 12


def test_domains_look_different():
    means = {
        domain: np.mean([shot(domain, pid, 1 + pid % 4, 0).image for pid in range(1, 9)])
        for domain in DOMAINS
    }
    assert len({round(mean) for mean in means.values()}) > len(DOMAINS) // 2


def test_pretraining_and_benchmark_domains_do_not_overlap():
    assert len(PRETRAINING) == 2 and len(BENCHMARK) == 4
    assert set(PRETRAINING).isdisjoint(BENCHMARK)
    assert set(DOMAINS) == {*PRETRAINING, *BENCHMARK, *REAL_LOOK}
    assert all(domain.cameras >= 4 for domain in DOMAINS.values())


def test_varied_domains_show_other_people_in_known_clothes_from_more_cameras() -> None:
    assert set(VARIED).isdisjoint(DOMAINS)
    for name, domain in VARIED.items():
        known = DOMAINS[name.removesuffix("-varied")]
        assert known.name in PRETRAINING
        assert (domain.wardrobe.tops, domain.scene) == (known.wardrobe.tops, known.scene)
        assert domain.cameras > known.cameras
    name = next(iter(VARIED))
    assert identity(name, 1) != identity(name.removesuffix("-varied"), 1)
    heights = [site(name, camid).camera.height_m for camid in range(1, 9)]
    assert max(heights) - min(heights) > 2


@pytest.mark.parametrize(
    ("address", "complaint"),
    [
        (("syn-moon", 1, 1, 0), "syn-moon.*syn-mall"),
        (("syn-mall", 0, 1, 0), "pid 0"),
        (("syn-mall", 1, 5, 0), "expected a camera from 1 to 4, found 5"),
        (("syn-mall", 1, 1, -1), "index -1"),
    ],
)
def test_a_key_that_does_not_exist_is_rejected(address, complaint):
    with pytest.raises(MuvaError, match=complaint):
        shot(*address)

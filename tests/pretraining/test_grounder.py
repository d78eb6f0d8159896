from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from muva.config import PARTS
from muva.pretraining.grounder import (
    HEIGHT,
    TASK,
    WIDTH,
    Shots,
    _shots,
    answer_loss,
    answer_tokens,
    coverage,
    draw_batch,
    new_grounder,
    new_processor,
    pretrain,
    reframe,
)
from muva.synthetic import VARIED, render

BOX = (0.25, 0.25, 0.75, 0.5)


def shots(count: int = 8) -> Shots:
    """White boxes on grey, in the place of the head; the other parts are out of sight."""
    images = np.full((count, HEIGHT, WIDTH, 3), 100, np.uint8)
    boxes = np.full((count, len(PARTS), 4), np.nan, np.float32)
    images[:, HEIGHT // 4 : HEIGHT // 2, WIDTH // 4 : 3 * WIDTH // 4] = 255
    boxes[:, 0] = BOX
    return Shots(images, boxes)


def test_each_camera_sees_different_people() -> None:
    name = next(iter(VARIED))
    first, second = (_shots(name, camid, 2) for camid in (1, 2))
    assert first.images.shape == (2, HEIGHT, WIDTH, 3) and first.boxes.shape == (2, len(PARTS), 4)
    expected = render(name, pid=4, camid=2, index=0, height=HEIGHT, width=WIDTH)
    assert np.array_equal(second.images[1], expected.image)
    assert second.boxes[1].tolist() == pytest.approx(
        np.array([expected.boxes[part] for part in PARTS]), abs=1e-6
    )


def test_an_answer_is_read_back_as_the_box_it_was_made_from() -> None:
    processor: Any = new_processor()
    nowhere = (math.nan,) * 4
    boxes = torch.tensor([[(0.1, 0.2, 0.5, 0.9999), (0.0, 0.0, 1.0, 1.0), nowhere]])
    texts = processor.batch_decode(answer_tokens(boxes, processor.tokenizer))
    read = [
        processor.post_process_generation(text, task=TASK, image_size=(10_000, 10_000))[TASK]
        for text in texts
    ]
    assert [found["labels"] for found in read] == [["head"], ["upper body"], []]
    for found, box in zip(read[:2], boxes[0, :2], strict=True):
        np.testing.assert_allclose(np.array(found["bboxes"][0]) / 10_000, box, atol=6e-4)


def test_a_question_and_an_answer_use_no_unknown_word() -> None:
    processor: Any = new_processor()
    asked = [f"{TASK}the {words} of the person" for words in ("head", "upper body", "legs")]
    blank = [np.zeros((100, 50, 3), np.uint8)] * 3
    ids = processor(text=asked, images=blank, padding=True, return_tensors="pt")["input_ids"]
    assert processor.tokenizer.unk_token_id not in ids
    assert (ids == processor.tokenizer.image_token_id).sum(dim=1).tolist() == [33] * 3


def test_boxes_follow_the_picture_into_another_crop() -> None:
    made = shots(32)
    pixels = torch.from_numpy(made.images).permute(0, 3, 1, 2).float()
    framed, boxes = reframe(pixels, torch.from_numpy(made.boxes), np.random.default_rng(0))
    assert boxes[:, 1:].isnan().all()
    for image, box in zip(framed, boxes[:, 0], strict=True):
        rows, columns = torch.where(image[0] > 180)
        seen = (columns.min() / WIDTH, rows.min() / HEIGHT)
        seen += ((columns.max() + 1) / WIDTH, (rows.max() + 1) / HEIGHT)
        np.testing.assert_allclose(box, seen, atol=0.02)
    assert len({tuple(box.tolist()) for box in boxes[:, 0]}) == 32


def test_each_image_of_a_batch_has_a_different_sensor() -> None:
    rng = np.random.default_rng(0)
    pixels, boxes = draw_batch(shots(16), rng)
    assert pixels.shape == (16, 3, HEIGHT, WIDTH) and boxes.shape == (16, len(PARTS), 4)
    assert pixels.abs().max() <= 1
    assert len({round(float(image.mean()), 4) for image in pixels}) == 16
    again, _ = draw_batch(shots(16), np.random.default_rng(0))
    assert torch.equal(again, pixels)


def test_a_cell_is_covered_as_its_pixels_are() -> None:
    box = torch.tensor([[(0.1, 0.2, 0.63, 0.71), (0.0, 0.0, 1.0, 1.0), (math.nan,) * 4]])
    fine = 400
    across = (torch.arange(4 * fine) + 0.5) / (4 * fine)
    down = (torch.arange(8 * fine) + 0.5) / (8 * fine)
    inside = ((down >= 0.2) & (down < 0.71))[:, None] & ((across >= 0.1) & (across < 0.63))
    expected = inside.float().unflatten(0, (8, fine)).unflatten(2, (4, fine)).mean(dim=(1, 3))
    covered = coverage(box)
    assert covered.shape == (1, 32, 3)
    torch.testing.assert_close(covered[0, :, 0], expected.flatten(), atol=3e-3, rtol=0)
    assert covered[0, :, 1].eq(1).all() and covered[0, :, 2].eq(0).all()


def test_a_location_that_is_nearly_right_costs_less() -> None:
    tokenizer: Any = new_processor().tokenizer
    answers = answer_tokens(torch.tensor([[BOX] * 3]), tokenizer)
    first = tokenizer.convert_tokens_to_ids("<loc_0>")

    def loss(shift: int) -> float:
        said = torch.where(answers >= first, answers + shift * (answers < first + 900), answers)
        logits = 5.0 * torch.nn.functional.one_hot(said, len(tokenizer)).float()
        pad = tokenizer.pad_token_id
        return float(answer_loss(logits, answers, first_location=first, pad=pad, spread=6.0))

    assert loss(0) < loss(3) < loss(12)


def test_the_same_seed_gives_the_same_weights_and_the_loss_falls() -> None:
    processor = new_processor()
    trained = []
    for _ in range(2):
        model = new_grounder(processor, seed=3)
        losses = [loss for _, loss in pretrain(model, processor, shots(), steps=6, seed=3)]
        assert losses[-1] < losses[0]
        trained.append(model.state_dict())
    assert all(torch.equal(trained[0][name], trained[1][name]) for name in trained[0])


@pytest.mark.parametrize("seed", [0, 1])
def test_another_seed_gives_another_model(seed: int) -> None:
    processor = new_processor()
    ours, other = (new_grounder(processor, seed=number) for number in (seed, 7))
    name = "model.vision_tower.convs.0.conv.weight"
    assert not torch.equal(ours.state_dict()[name], other.state_dict()[name])

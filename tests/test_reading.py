"""The reader of the teacher's recipe: geometry against the judge's, CTC against all alignments, where gradients go."""

import itertools
import math

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F

from anytext_lcm.data.mock import MockDataset
from anytext_lcm.judging.reading import rectify
from anytext_lcm.teacher.reading import (
    HEIGHT,
    LETTERS,
    MAX_LOSS,
    WIDTH,
    Reader,
    ReadingLoss,
    ctc,
    cut_lines,
    evenly_spaced,
    letter_ids,
    line_transform,
    moved,
    read,
)


def test_letters_have_no_case():
    assert letter_ids("aB-9 z") == letter_ids("Ab9Z") == [11, 12, 10, 36]
    assert len(LETTERS) == 36


def test_lines_are_cut_as_the_judge_cuts_them():
    dataset = MockDataset(12, seed=4, image_size=128, max_lines=2)
    seen = 0
    for item in (dataset[i] for i in range(12)):
        picture = np.round((np.asarray(item["img"]) + 1) * 127.5).astype(np.uint8)
        for quad in item["condition_polygons"]:
            transform = torch.from_numpy(line_transform(quad, 128))[None]
            ours = cut_lines(torch.from_numpy(picture).float()[None], transform, torch.tensor([0]))[0]
            theirs = rectify(picture.transpose(1, 2, 0), quad, height=HEIGHT)
            theirs = cv2.resize(theirs, (WIDTH, HEIGHT), interpolation=cv2.INTER_LINEAR).transpose(2, 0, 1)
            apart = (ours - torch.from_numpy(theirs).float()).abs().mean().item()
            mirrored = (ours.flip(2) - torch.from_numpy(theirs).float()).abs().mean().item()
            assert apart < 0.3 * mirrored and apart < 16, (item["texts"], apart, mirrored)
            seen += 1
    assert seen > 12


def test_a_line_from_top_to_bottom_is_read_from_its_side():
    picture = torch.zeros(1, 3, 128, 128)
    picture[:, :, 20:40, 60:70] = 1  # the upper part of a line that runs down
    quad = np.array([[55, 20], [75, 20], [75, 110], [55, 110]])
    line = cut_lines(picture, torch.from_numpy(line_transform(quad, 128))[None], torch.tensor([0]))[0, 0]
    judged = rectify(picture[0].permute(1, 2, 0).mul(255).byte().numpy(), quad, height=HEIGHT)
    assert judged[:, judged.shape[1] // 2 :].sum() == 0 < judged[:, : judged.shape[1] // 2].sum()
    assert line[:, 64:].sum() == 0 < line[:, :64].sum()  # what stood at the top stands at the beginning, as there


def test_moved_lines_stay_near_and_repeat_with_their_generator():
    transforms = torch.eye(2, 3).expand(200, 2, 3) * 0.5
    first = moved(transforms, torch.Generator().manual_seed(3))
    assert torch.equal(first, moved(transforms, torch.Generator().manual_seed(3)))
    assert 0 < (first - transforms).abs().max() < 0.5 * 0.16
    assert first[:, :, 2].abs().max() <= 0.015
    areas = torch.linalg.det(first[:, :, :2]) / 0.25
    assert areas.min() > 0.94 * 0.92 - 1e-6 and areas.max() < 1.06 * 1.08 + 1e-6


def test_ctc_sums_over_all_alignments():
    logits = torch.randn(2, 4, 37, generator=torch.Generator().manual_seed(0))
    texts = [[5, 6], [7]]
    probabilities = logits.double().softmax(-1)
    for row, ids, loss in zip(probabilities, texts, ctc(logits, texts), strict=True):
        total = 0.0
        for path in itertools.product([0, *ids], repeat=4):
            said = [a for a, b in zip(path, (0, *path), strict=False) if a and a != b]
            if said == ids:
                total += math.prod(row[t, c].item() for t, c in enumerate(path))
        assert loss.item() == pytest.approx(-math.log(total) / len(ids), rel=1e-5)


def test_reading_drops_repeats_and_blanks():
    ids = torch.tensor([[0, 11, 11, 0, 11, 12, 0]])
    assert read(F.one_hot(ids, 37).float()) == ["aab"]


def test_letters_begin_evenly_spaced():
    logits = torch.zeros(1, 40, 37)
    at = torch.tensor([12, 28])  # middles of the first and the second half of what lies inside a tenth at each end
    logits[0, at, torch.tensor([3, 4])] = 20.0
    swapped = torch.zeros(1, 40, 37)
    swapped[0, at, torch.tensor([4, 3])] = 20.0
    assert evenly_spaced(logits, [[3, 4]]) < evenly_spaced(swapped, [[3, 4]])


def test_the_loss_moves_latents_and_leaves_the_reader(monkeypatch):
    torch.manual_seed(0)
    reader = Reader()
    loss_of = ReadingLoss(reader, lambda z: F.interpolate(z, scale_factor=8), noise=0.1)
    latents = torch.randn(2, 3, 16, 16, requires_grad=True)
    quads = [[[8, 40], [120, 40], [120, 70], [8, 70]]] * 3
    transforms = torch.from_numpy(np.stack([line_transform(np.array(q), 128) for q in quads]))
    texts = [letter_ids("abc"), letter_ids("12"), letter_ids("xyz9")]
    where = torch.tensor([0, 0, 1])
    lost = loss_of(latents, transforms, where, texts, torch.Generator().manual_seed(1))
    assert torch.equal(lost, torch.full((3,), MAX_LOSS))  # a reader that has learned nothing reads nothing
    monkeypatch.setattr("anytext_lcm.teacher.reading.MAX_LOSS", 1e4)
    losses = loss_of(latents, transforms, where, texts, torch.Generator().manual_seed(1))
    assert losses.shape == (3,) and losses.min() > MAX_LOSS
    losses.sum().backward()
    rows = latents.grad.abs().sum((0, 1, 3))
    assert rows[5:9].min() > 0 and rows[:3].max() == 0 and rows[12:].max() == 0  # where the line stands, and only there
    assert all(p.grad is None for p in reader.parameters())


@pytest.mark.full
def test_a_reader_learns_a_handful_of_lines():
    torch.manual_seed(0)
    dataset = MockDataset(8, seed=1, image_size=128, max_lines=2)
    pictures = torch.stack([torch.as_tensor(dataset[i]["img"]) for i in range(8)])
    texts = [letter_ids(t) for i in range(8) for t in dataset[i]["texts"]]
    quads = [(i, q) for i in range(8) for q in dataset[i]["condition_polygons"]]
    transforms = torch.from_numpy(np.stack([line_transform(q, 128) for _, q in quads]))
    lines = cut_lines(pictures, transforms, torch.tensor([i for i, _ in quads]))
    reader = Reader()
    optimiser = torch.optim.AdamW(reader.parameters(), lr=2e-3)
    for step in range(120):
        logits = reader(lines)
        loss = evenly_spaced(logits, texts) if step < 60 else ctc(logits, texts).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    right = [letter_ids(said) == ids for said, ids in zip(read(reader(lines)), texts, strict=True)]
    assert np.mean(right) > 0.8

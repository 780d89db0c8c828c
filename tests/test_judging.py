"""The judge against cases whose answer is known."""

import cv2
import numpy as np
import pytest
import torch

from anytext_lcm.data.colours import COLORS
from anytext_lcm.data.mock import MockDataset
from anytext_lcm.judging import colours, intervals, likeness, reading


@pytest.fixture(scope="module")
def reader():
    return reading.LineReader(threads=1)


@pytest.fixture(scope="module")
def detector():
    return likeness.DetectorFeatures(threads=1)


@pytest.fixture(scope="module")
def scenes():
    dataset = MockDataset(20, seed=3, split="test")
    return [dataset.scene(index) for index in range(len(dataset))]


def score(reader, scenes, images):
    polygons = [[line.condition_quad for line in scene.lines] for scene in scenes]
    texts = [[line.text for line in scene.lines] for scene in scenes]
    return reading.score_lines(reader, images, polygons, texts)


# ---- pictures ----


def test_pictures_of_every_form_are_the_same_picture():
    picture = np.random.default_rng(0).integers(0, 256, (2, 8, 12, 3), dtype=np.uint8)
    floats = picture.transpose(0, 3, 1, 2).astype(np.float32) / 127.5 - 1
    for form in (picture, list(picture), floats, torch.from_numpy(floats), torch.from_numpy(floats).double()):
        np.testing.assert_array_equal(reading.as_uint8(form), picture)


@pytest.mark.parametrize("images", [np.zeros((2, 8, 8, 3)), [np.zeros((8, 8), np.uint8)], [np.zeros((8, 8, 3))]])
def test_other_pictures_are_refused(images):
    with pytest.raises(ValueError, match="must be"):
        reading.as_uint8(images)


# ---- reading ----


def test_reader_reads_what_is_drawn_and_fails_on_noise(reader, scenes):
    clean = score(reader, scenes, [scene.image for scene in scenes])
    assert clean.accuracy >= 0.95 and clean.ned.mean() >= 0.98
    rng = np.random.default_rng(0)
    noisy = [scene.image + rng.normal(0, 120, scene.image.shape) for scene in scenes]
    spoilt = score(reader, scenes, [image.clip(0, 255).astype(np.uint8) for image in noisy])
    assert spoilt.accuracy < 0.7 * clean.accuracy
    assert spoilt.ned.mean() < clean.ned.mean() - 0.1
    retention = intervals.paired_bootstrap(spoilt.correct, clean.correct, clean.group)
    assert retention.low < retention.value < retention.high < 1


def test_reader_does_not_read_what_is_not_there(reader, scenes):
    swapped = score(reader, scenes, [scene.image for scene in scenes[1:] + scenes[:1]])
    assert swapped.accuracy == 0
    assert score(reader, scenes, np.full((len(scenes), 128, 128, 3), 90, np.uint8)).accuracy == 0


def test_reader_does_not_depend_on_the_batch(reader, scenes):
    crops = [reading.rectify(scene.image, scene.lines[0].quad) for scene in scenes[:5]]
    assert reader.read_crops(crops) == [reader.read_crops([crop])[0] for crop in crops]


def test_reader_agrees_with_rapidocr(reader, scenes):
    from rapidocr import RapidOCR

    engine = RapidOCR(params={"Global.log_level": "critical"})
    for scene in scenes[:4]:
        crop = reading.rectify(scene.image, scene.lines[0].quad)
        theirs = engine(crop[:, :, ::-1].copy(), use_det=False, use_cls=False, use_rec=True).txts
        assert reader.read_crops([crop]) == list(theirs)


def test_a_rotated_line_is_brought_upright():
    """A smooth picture sampled through a turned quad equals the picture in the quad's own coordinates."""
    angle, size = np.radians(30), 96
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    local = np.array([[-30, -12], [30, -12], [30, 12], [-30, 12]], dtype=np.float64)
    quad = local @ turn.T + size / 2
    y, x = np.mgrid[:size, :size]
    along, down = turn.T @ (np.stack([x.ravel(), y.ravel()]) - size / 2)
    image = np.stack([128 + 3 * along, 128 + 6 * down, np.full(size * size, 7)], axis=1)
    image = image.clip(0, 255).astype(np.uint8).reshape(size, size, 3)
    for points in (quad, quad[[0, 3, 2, 1]]):  # clockwise and counter-clockwise
        crop = reading.rectify(image, points, height=48, margin=0).astype(float)
        assert crop.shape == (48, 120, 3)
        assert np.abs(crop[24, 60] - (128, 128, 7)).max() < 5
        assert np.abs(crop[24, 110, 0] - (128 + 3 * 25)) < 5 and np.abs(crop[42, 60, 1] - (128 + 6 * 9)) < 5


def test_vertical_lines_lie_and_other_polygons_become_rectangles():
    image = np.zeros((64, 64, 3), np.uint8)
    image[8:20] = 255  # the top of the line
    lying = reading.rectify(image, np.array([[20, 8], [36, 8], [36, 56], [20, 56]]), margin=0)
    assert lying.shape == (48, 144, 3)
    assert lying[:, :20].mean() > 250 and lying[:, -20:].mean() < 5  # it now starts on the left
    hexagon = np.array([[10, 10], [30, 10], [50, 10], [50, 20], [30, 20], [10, 20]])
    np.testing.assert_allclose(reading.line_quad(hexagon), [[10, 10], [50, 10], [50, 20], [10, 20]], atol=1e-3)
    with pytest.raises(ValueError, match="3 or more"):
        reading.line_quad(np.zeros((2, 2)))


@pytest.mark.parametrize(
    ("wanted", "read", "expected"),
    [("", "", 1), ("abc", "", 0), ("abc", "abc", 1), ("kitten", "sitting", 1 - 3 / 7), ("ab", "ba", 0)],
)
def test_ned(wanted, read, expected):
    assert reading.ned(wanted, read) == pytest.approx(expected)


def test_comparison_ignores_case_marks_and_width_but_not_letters():
    assert reading.normalise(" Ab-C 1! ") == reading.normalise("ａＢc１") == "abc1"
    assert reading.normalise("文字!") == "文字"
    assert reading.normalise("!?") == "!?" != reading.normalise("")


def test_mismatched_lists_are_refused(reader):
    image, quad = np.zeros((1, 32, 32, 3), np.uint8), np.array([[2, 2], [20, 2], [20, 10], [2, 10]])
    with pytest.raises(ValueError, match="pair them"):
        reading.score_lines(reader, image, [[quad, quad]], [["a"]])
    with pytest.raises(ValueError, match="one a picture"):
        reading.score_lines(reader, image, [[quad]], [["a"], ["b"]])
    with pytest.raises(ValueError, match="no text line"):
        reading.score_lines(reader, image, [[]], [[]])
    with pytest.raises(ValueError, match="give one list a picture"):
        reader.read(image, [])


# ---- intervals ----


def clustered(rng, prompts, teacher_rate=0.8, keep=0.9, lines=6):
    """Lines of one prompt share their luck; the student keeps `keep` of what the teacher gets right."""
    luck = rng.beta(2 * teacher_rate, 2 * (1 - teacher_rate), prompts).repeat(lines)
    teacher = rng.random(prompts * lines) < luck
    return teacher & (rng.random(prompts * lines) < keep), teacher, np.arange(prompts).repeat(lines)


def test_intervals_over_prompts_cover_the_truth():
    rng, covered = np.random.default_rng(0), np.zeros(3)
    for trial in range(200):
        student, teacher, groups = clustered(rng, 60)
        mean = intervals.bootstrap_mean(teacher, groups, draws=400, seed=trial)
        naive = intervals.bootstrap_mean(teacher, np.arange(len(teacher)), draws=400, seed=trial)
        ratio = intervals.paired_bootstrap(student, teacher, groups, draws=400, seed=trial)
        truth = ((mean, 0.8), (ratio, 0.9), (naive, 0.8))
        covered += [interval.low <= value <= interval.high for interval, value in truth]
    assert 0.89 <= covered[0] / 200 <= 0.99
    assert 0.89 <= covered[1] / 200 <= 0.99
    assert covered[2] / 200 < 0.85  # as if lines were independent: too narrow


def test_bootstrap_is_seeded_paired_and_exact_at_the_ends():
    student, teacher, groups = clustered(np.random.default_rng(1), 80)
    first = intervals.paired_bootstrap(student, teacher, groups)
    assert first == intervals.paired_bootstrap(student, teacher, groups)
    assert first != intervals.paired_bootstrap(student, teacher, groups, seed=1)
    assert first.value == pytest.approx(student.sum() / teacher.sum()) and first.n == 80
    same = intervals.paired_bootstrap(teacher, teacher, groups)
    assert (same.value, same.low, same.high) == (1, 1, 1)  # paired: equal answers leave no doubt
    with pytest.raises(ValueError, match="nothing to retain"):
        intervals.paired_bootstrap(student, np.zeros_like(teacher), groups)
    with pytest.raises(ValueError, match="one a line"):
        intervals.bootstrap_mean(student, groups[:-1])


def test_accuracy_by_height_splits_every_line_once():
    heights = np.array([10.0, 16, 18, 40])
    scores = reading.LineScores(
        wanted=("a",) * 4,
        read=("a",) * 4,
        group=np.arange(4),
        height=heights,
        correct=np.array([0, 1, 0, 1], bool),
        exact=np.ones(4, bool),
        ned=np.ones(4),
    )
    buckets = intervals.accuracy_by_height(scores, edges=(0, 16, 24, np.inf))
    assert [(low, high, lines, share.value) for low, high, lines, share in buckets] == [
        (0, 16, 1, 0),
        (16, 24, 2, 0.5),
        (24, np.inf, 1, 1),
    ]
    assert (buckets[1][3].low, buckets[1][3].high) == (0, 1)  # one of two prompts drawn twice: a chance of 1/4 each
    fields = {name: np.tile(value, 3) for name, value in vars(scores).items() if name not in ("wanted", "read")}
    thrice = reading.LineScores(wanted=scores.wanted * 3, read=scores.read * 3, **fields)
    assert intervals.accuracy_by_height(thrice, (0, 16, 24, np.inf), repeats=3) == buckets  # no surer than once


# ---- distributions ----


def test_kernel_distance_is_the_unbiased_sum_over_pairs():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(5, 3)), rng.normal(size=(4, 3)) + 0.5

    def mean_kernel(xs, ys, skip_same):
        pairs = [(i, j) for i in range(len(xs)) for j in range(len(ys)) if not (skip_same and i == j)]
        return np.mean([(xs[i] @ ys[j] / 3 + 1) ** 3 for i, j in pairs])

    expected = mean_kernel(a, a, True) + mean_kernel(b, b, True) - 2 * mean_kernel(a, b, False)
    assert likeness.kernel_distance(a, b).value == pytest.approx(expected)


def test_kernel_distance_of_groups_is_over_pairs_of_different_groups():
    rng = np.random.default_rng(0)
    a, b, groups = rng.normal(size=(6, 3)), rng.normal(size=(4, 3)) + 0.5, [7, 7, 2, 2, 2, 5]
    kernel = {name: (x @ y.T / 3 + 1) ** 3 for name, x, y in (("aa", a, a), ("bb", b, b), ("ab", a, b))}
    apart = [kernel["aa"][i, j] for i in range(6) for j in range(6) if groups[i] != groups[j]]
    others = [kernel["bb"][i, j] for i in range(4) for j in range(4) if i != j]
    expected = np.mean(apart) + np.mean(others) - 2 * kernel["ab"].mean()
    assert likeness.kernel_distance(a, b, groups=groups).value == pytest.approx(expected)
    once, alone = likeness.kernel_distance(a, b), likeness.kernel_distance(a, b, groups=np.arange(6))
    assert once == alone
    # The same pictures again say nothing new.
    twice = likeness.kernel_distance(np.tile(a, (2, 1)), b, groups=np.tile(np.arange(6), 2))
    assert [twice.value, twice.low, twice.high, twice.n] == pytest.approx([once.value, once.low, once.high, once.n])
    with pytest.raises(ValueError, match="5 groups for 6 pictures"):
        likeness.kernel_distance(a, b, groups=np.arange(5))


def test_kernel_distance_is_zero_on_average_and_grows_with_the_shift():
    rng, same = np.random.default_rng(0), []
    for _ in range(200):
        a, b = rng.normal(size=(2, 20, 4))
        same.append(likeness.kernel_distance(a, b, draws=2).value)
    error = np.std(same) / np.sqrt(len(same))
    assert abs(np.mean(same)) < 3 * error
    a, b = rng.normal(size=(2, 100, 4))
    near, far = likeness.kernel_distance(a, b + 0.5), likeness.kernel_distance(a, b + 1)
    assert 0 < near.low < near.value < near.high < far.value
    with pytest.raises(ValueError, match="Features must be"):
        likeness.kernel_distance(a, b[:, :3])


def test_distribution_distance_sees_what_the_floor_does_not(detector):
    """Blur and noise lie clear of the floor, other pictures of the same kind do not."""
    pictures = [MockDataset(24, seed=seed).picture(index)[0] for seed in range(3) for index in range(24)]
    pictures = reading.as_uint8(np.stack(pictures))
    features = detector(pictures)
    assert features.shape == (72, 384) and np.isfinite(features).all()
    np.testing.assert_allclose(detector(pictures[:1]), features[:1], rtol=1e-4, atol=1e-4)
    real, fresh = features[:48], features[48:]
    ground = likeness.RealFeatures(real)
    honest = ground.distance(fresh)
    assert honest.n == 24 and honest.kernel.low < 0.1
    blurred = [cv2.GaussianBlur(picture, (0, 0), 1.5) for picture in pictures[48:]]
    spoilt = ground.distance(detector(blurred))
    assert spoilt.kernel.low > max(spoilt.kernel_floor.high, honest.kernel.high)
    centre, scale = real[:24].mean(axis=0), real[:24].std(axis=0) + 1e-6
    halves = [(half - centre) / scale for half in (real[24:], real[:24])]
    assert spoilt.kernel_floor == honest.kernel_floor == likeness.kernel_distance(*halves)
    with pytest.raises(ValueError, match="1 drawn pictures for 24"):
        ground.distance(fresh[:1])
    with pytest.raises(ValueError, match="at least 4"):
        likeness.RealFeatures(real[:3])


# ---- pixels ----


def test_sharpness_falls_under_blur_and_looks_where_it_is_told(scenes):
    pictures = [scene.image for scene in scenes[:8]]
    for measure in (likeness.sharpness, likeness.gradient_energy):
        values = [measure([cv2.GaussianBlur(p, (0, 0), s) for p in pictures]) for s in (0.3, 0.8, 1.6)]
        assert (values[0] > values[1]).all() and (values[1] > values[2]).all()
    half = np.zeros((8, 8, 3), np.uint8)
    half[::2, :4] = 255
    left = np.zeros((8, 8), bool)
    left[:, :3] = True
    right = np.zeros((8, 8), bool)
    right[:, 5:] = True
    inside, outside = (likeness.sharpness([half], [mask])[0] for mask in (left, right))
    assert inside > 0 and outside == 0


def test_same_noise_distance_by_hand():
    student, teacher = np.full((2, 4, 4, 3), 100, np.uint8), np.full((2, 4, 4, 3), 100, np.uint8)
    student[0] += 10
    rmse, psnr = likeness.same_noise_distance(student, teacher)
    assert rmse.tolist() == [10, 0] and np.isposinf(psnr[1])
    assert psnr[0] == pytest.approx(20 * np.log10(25.5))
    with pytest.raises(ValueError, match="equally many"):
        likeness.same_noise_distance(student, teacher[:1])


# ---- colours ----


def test_named_colours_are_their_own_nearest():
    assert [colours.nearest_colour(rgb) for rgb in COLORS.values()] == list(COLORS)


def test_colours_of_true_pictures_are_recognised():
    text, others, dataset = [], [], MockDataset(60, seed=3, split="test")
    for scene in map(dataset.scene, range(60)):
        mask = colours.text_mask([line.quad for line in scene.lines], scene.image.shape[:2])
        if scene.ground == "plain":
            assert colours.background_obeyed(scene.image, scene.tones[0], mask)
        if not scene.named_text or scene.ground == "gradient":  # what has no name or passes others lies between two
            continue
        there = {*scene.tones, *(line.color_name for line in scene.lines)}
        for line in scene.lines:
            text.append(colours.text_colour_obeyed(scene.image, line.condition_quad, line.color_name))
            missing = set(COLORS) - there
            others += [colours.text_colour_obeyed(scene.image, line.condition_quad, name) for name in missing]
    assert len(text) > 10 and np.mean(text) >= 0.95 and np.mean(others) <= 0.08


def test_colour_questions_that_make_no_sense():
    image, quad = np.zeros((16, 16, 3), np.uint8), np.array([[2, 2], [14, 2], [14, 8], [2, 8]])
    assert colours.background_obeyed(image, "black") and colours.text_colour_obeyed(image, quad, "black")
    with pytest.raises(ValueError, match="No colour is called 'mauve'"):
        colours.background_obeyed(image, "mauve")
    with pytest.raises(ValueError, match="No colour is called 'mauve'"):
        colours.text_colour_obeyed(image, quad, "mauve")
    with pytest.raises(ValueError, match="leaves no background"):
        colours.background_colour(image, np.ones((16, 16), bool))


# ---- diversity ----


def test_diversity():
    rng = np.random.default_rng(0)
    features = rng.normal(size=(2 * 50, 64))
    assert likeness.diversity(features, 2).mean() == pytest.approx(np.sqrt(2), rel=0.05)  # two independent pictures
    assert likeness.diversity(np.tile(features[:50], (3, 1)), 3).max() == 0
    assert likeness.diversity(features, 2, np.full(64, 2.0)).mean() == pytest.approx(np.sqrt(2) / 2, rel=0.05)
    for repeats in (1, 3):
        with pytest.raises(ValueError, match="for each prompt"):
            likeness.diversity(features, repeats)

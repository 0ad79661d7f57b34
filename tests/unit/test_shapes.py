"""Generated shapes: exact masks, and nothing but the outline tells the class."""

import math
from functools import partial

import numpy as np
import pytest
from matplotlib.path import Path
from scipy.ndimage import binary_erosion
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import StandardScaler

from gmar_utils import data
from gmar_utils.data import drawing as shapes

SIZE = 32


@pytest.fixture(scope="module")
def many():
    return shapes.scenes(1536, SIZE, seed=5)


def slow_mask(name, size, place, radius, turn):
    """One pixel centre after the other, in the outline's own coordinates."""
    reach = radius / shapes.unit_scale()[0][name]  # an outline's unit, in widths of the picture
    outline = shapes.OUTLINES[name]
    polygon = Path(outline.args[0]) if isinstance(outline, partial) else None
    mask = np.zeros((size, size), bool)
    for row in range(size):
        for column in range(size):
            dx, dy = (column + 0.5) / size - place[0], (row + 0.5) / size - place[1]
            angle, r = math.atan2(dy, dx) - turn, math.hypot(dx, dy) / reach
            x, y = r * math.cos(angle), r * math.sin(angle)
            if polygon:
                mask[row, column] = polygon.contains_point((x, y))
            elif name == "disc":
                mask[row, column] = r < 1
            elif name == "ring":
                mask[row, column] = math.sqrt(0.3) < r < 1
            elif name == "crescent":
                mask[row, column] = r < 1 and math.dist((x, y), (0.55, 0)) > math.sqrt(0.7)
            else:
                mask[row, column] = math.dist((x, y), (0, -0.4)) < 1 and y > -0.4
    return mask


def test_masks_are_those_of_a_slow_rasteriser(monkeypatch):
    drawn, cover = [], shapes._cover

    def watched(outline, size, place, radius, turn, *scale):
        if outline in shapes.OUTLINES.values():  # an object, and no blob
            name = next(k for k, v in shapes.OUTLINES.items() if v is outline)
            drawn.append((name, size, place, radius, turn))
        return cover(outline, size, place, radius, turn, *scale)

    monkeypatch.setattr(shapes, "_cover", watched)
    made = shapes.scenes(40, SIZE, seed=3)
    assert {name for name, *_ in drawn[:40]} == set(shapes.CLASSES)
    for i in range(40):
        assert drawn[i][0] == shapes.CLASSES[made.labels[i, 0]]
        assert (made.masks[i, 0] != slow_mask(*drawn[i])).sum() <= 1  # a centre on the very edge


def test_boxes_hold_their_masks_exactly(many):
    for mask, (x0, y0, x1, y1) in zip(many.masks[:50, 0], many.boxes[:50, 0], strict=True):
        rows, columns = np.nonzero(mask)
        assert (x0, y0, x1, y1) == (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)


def test_same_seed_same_bytes_whatever_the_number(many):
    again = shapes.scenes(70, SIZE, seed=5)
    for ours, first in zip(again, many, strict=True):
        assert ours.tobytes() == first[:70].tobytes()
    assert shapes.scenes(10, SIZE, seed=6).images.tobytes() != many.images[:10].tobytes()


def test_the_layout_does_not_depend_on_the_resolution(many):
    large = shapes.scenes(20, 2 * SIZE, seed=5)
    assert (large.labels == many.labels[:20]).all()
    assert np.abs(large.boxes / 2 - many.boxes[:20]).max() <= 1


def test_no_more_is_hidden_than_was_asked_for():
    made = shapes.scenes(64, SIZE, seed=1, occlusion=0.3)
    whole = shapes.scenes(64, SIZE, seed=1, occlusion=0.001)
    share = 1 - made.masks.sum((1, 2, 3)) / whole.masks.sum((1, 2, 3))
    assert 0.1 < share.max() <= 0.3 and share.min() >= -0.01


def test_two_objects_are_of_two_classes_and_do_not_share_pixels():
    made = shapes.scenes(64, SIZE, seed=2, objects=2)
    assert (made.labels[:, 0] != made.labels[:, 1]).all()
    assert not (made.masks[:, 0] & made.masks[:, 1]).any()
    assert made.masks.any((2, 3)).all()


def found_by(features, labels):
    """Percent right of a linear classifier on the second half, having learned on the first."""
    features = StandardScaler().fit_transform(features)
    half = len(labels) // 2
    classifier = LogisticRegression(C=0.1, max_iter=300).fit(features[:half], labels[:half])
    return 100 * classifier.score(features[half:], labels[half:])


CHANCE = 100 / len(shapes.CLASSES)
BAR = CHANCE + 3.5  # three standard errors of 768 answers


def test_a_colour_histogram_stays_at_chance(many):
    bins = (many.images // 32).reshape(len(many.images), -1, 3)
    whole = np.concatenate([(bins == b).mean(1) for b in range(8)], -1)
    inside = np.stack([image[mask].mean(0) for image, mask in zip(many.images, many.masks[:, 0], strict=True)])
    assert found_by(whole, many.labels[:, 0]) < BAR
    assert found_by(inside, many.labels[:, 0]) < BAR


def test_a_texture_classifier_stays_at_chance(many):
    """On what lies well inside: pixels at the edge are mixed with the ground, which is the outline again."""
    grey, rows = many.images.mean(-1) / 255, []
    for picture, mask in zip(grey, many.masks[:, 0], strict=True):
        inner = binary_erosion(mask)
        steps = [np.abs(picture - np.roll(picture, 1, axis))[inner & np.roll(inner, 1, axis)].mean() for axis in (0, 1)]
        rows.append([*steps, np.log(steps[0] / steps[1]), abs(np.log(steps[0] / steps[1]))])
    assert found_by(np.array(rows), many.labels[:, 0]) < BAR


def test_size_and_place_stay_at_chance(many):
    rows, columns = np.mgrid[:SIZE, :SIZE]
    mask = many.masks[:, 0]
    area = mask.sum((1, 2))
    place = np.stack([(mask * axis).sum((1, 2)) / area for axis in (rows, columns)], 1)
    assert found_by(np.column_stack([area, place]), many.labels[:, 0]) < BAR


def test_the_outline_does_tell_the_class(many):
    """So that the four tests above can fail: the same classifier, given what an outline looks like."""
    mask = many.masks[:, 0]
    area = mask.sum((1, 2))
    edge = sum((mask != np.roll(mask, 1, axis)).sum((1, 2)) for axis in (1, 2))
    _, y0, _, y1 = many.boxes[:, 0].T
    x0, _, x1, _ = many.boxes[:, 0].T
    assert found_by(np.column_stack([edge / np.sqrt(area), area / ((x1 - x0) * (y1 - y0))]), many.labels[:, 0]) > 25


def test_one_record_for_each_object():
    records = data.shapes(3, size=SIZE, seed=4, objects=2)
    made = shapes.scenes(3, SIZE, seed=4, objects=2)
    assert len(records) == 6 and records["scene"][:] == [0, 0, 1, 1, 2, 2]
    assert (np.asarray(records[3]["image"]) == made.images[1]).all()
    assert (np.asarray(records[3]["mask"]) == made.masks[1, 1]).all()
    assert records[3]["label"] == made.labels[1, 1] and records[3]["box"] == made.boxes[1, 1].tolist()


def test_two_objects_are_a_pair():
    pairs, made = data.shape_pairs(3, size=SIZE, seed=4), shapes.scenes(3, SIZE, seed=4, objects=2)
    assert set(pairs.column_names) == {"image", "masks", "groups", "file"} and len(set(pairs["file"][:])) == 3
    assert pairs["groups"][:] == made.labels[:, :, None].tolist()
    for i in range(3):
        assert (np.asarray(pairs[i]["image"]) == made.images[i]).all()
        assert all((np.asarray(m) == made.masks[i, k]).all() for k, m in enumerate(pairs[i]["masks"]))


@pytest.mark.parametrize("wrong", [{"objects": 3}, {"occlusion": 1.0}, {"n": 0}, {"n": -5}])
def test_impossible_scenes_are_refused(wrong):
    with pytest.raises(ValueError, match="expected (objects 1 or 2|at least one scene)"):
        shapes.scenes(**{"n": 1, "size": SIZE} | wrong)

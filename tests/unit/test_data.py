"""Loaders on tiny data sets written here in each format, whole and broken; and on the real data where it is near."""

import io
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from gmar_utils import data, load_model
from gmar_utils.data import voc as voc_module
from gmar_utils.teaching import samples

WNIDS = [f"n{i:08d}" for i in range(200)]
REAL = next((p / "shared/data" for p in Path(__file__).parents if (p / "shared/data").is_dir()), None)
real = pytest.mark.skipif(REAL is None, reason="the real data (shared/data beside the checkout) is not here")


def jpeg(shade, size=(64, 64)):
    file = io.BytesIO()
    Image.new("RGB", size, (shade, 10, 200)).save(file, "JPEG")
    return file.getvalue()


def write_parquet(file, labels, box=True, **first):
    pictures = [{"bytes": jpeg(20 * i), "path": None} for i in range(len(labels))]
    pictures[0] |= first
    columns = {"image": pictures, "label": labels} | ({"bbox": [[1, 2, 10, 63]] * len(labels)} if box else {})
    info = {"info": {"features": {"label": {"names": WNIDS, "_type": "ClassLabel"}}}}
    pq.write_table(pa.table(columns).replace_schema_metadata({"huggingface": json.dumps(info)}), file)


@pytest.fixture
def parquet(tmp_path):
    root = tmp_path / "parquet"
    root.mkdir()
    for k in range(2):
        write_parquet(root / f"train-{k:05d}-of-00002.parquet", [3, 199, 0])
    write_parquet(root / "valid-00000-of-00001.parquet", [7, 8])
    return root


def test_parquet(parquet):
    train, valid = data.tiny_imagenet("train", parquet), data.tiny_imagenet("valid", parquet)
    assert (len(train), len(valid)) == (6, 2) and valid.features["label"].names == WNIDS
    row = valid[1]
    assert row["image"].size == (64, 64) and row["label"] == 8 and row["box"] == [1, 2, 11, 64]
    images, labels = data.tiny_imagenet_arrays("train", parquet)
    assert images.shape == (6, 3, 64, 64) and images.dtype == torch.uint8 and labels.tolist() == [3, 199, 0] * 2
    assert (images[4] == torch.from_numpy(np.array(train[4]["image"])).movedim(-1, 0)).all()


def test_parquet_without_boxes_and_by_environment(tmp_path, monkeypatch):
    write_parquet(tmp_path / "valid-00000-of-00001.parquet", [7], box=False)
    monkeypatch.setenv("GMAR_TINY_IMAGENET", str(tmp_path))
    assert data.tiny_imagenet()[0]["box"] is None


def test_parquet_that_is_not_of_tiny_imagenet(tmp_path):
    file = tmp_path / "valid-00000-of-00001.parquet"
    pq.write_table(pa.table({"image": [{"bytes": jpeg(1), "path": None}], "digit": [3]}), file)
    with pytest.raises(ValueError, match=r"valid-00000-of-00001\.parquet: expected columns image and label, got"):
        data.tiny_imagenet("valid", tmp_path)
    pq.write_table(pa.table({"image": [{"bytes": jpeg(1), "path": None}], "label": [3]}), file)
    with pytest.raises(ValueError, match=r"valid-00000-of-00001\.parquet: expected the names of 200 classes"):
        data.tiny_imagenet("valid", tmp_path)


@pytest.mark.parametrize(
    "damage", [lambda b: b"", lambda b: b[4:], lambda b: b[:-9], lambda b: b[:40] + b"x" * 90 + b[130:]]
)
def test_damaged_shards_are_named(parquet, damage, capfd):
    file = parquet / "train-00001-of-00002.parquet"
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(ValueError, match=r"train-0000[01]-of-00002\.parquet.*(again|names of 200)"):
        data.tiny_imagenet("train", parquet)[3]
    assert not capfd.readouterr().err


def test_an_empty_source_is_no_source(monkeypatch):
    for load in (data.tiny_imagenet, data.voc2012, data.voc_pairs):
        with pytest.raises(ValueError, match="The source is empty"):
            load(source="")


def test_broken_tiny_imagenet_names_the_file(parquet):
    write_parquet(parquet / "valid-00000-of-00001.parquet", [7, 8], bytes=jpeg(9)[:300])
    with pytest.raises(ValueError, match=r"valid-00000-of-00001\.parquet row 0: not a complete picture"):
        data.tiny_imagenet("valid", parquet)[0]
    write_parquet(parquet / "valid-00000-of-00001.parquet", [7, 200])
    with pytest.raises(ValueError, match=r"valid-00000-of-00001\.parquet row 1: label 200, expected 0 to 199"):
        data.tiny_imagenet("valid", parquet)
    half = parquet / "valid-00000-of-00001.parquet"
    half.write_bytes(half.read_bytes()[:500])
    with pytest.raises(ValueError, match=r"valid-00000-of-00001\.parquet: not a complete parquet file"):
        data.tiny_imagenet("valid", parquet)
    (parquet / "train-00001-of-00002.parquet").unlink()
    with pytest.raises(FileNotFoundError, match=r"train-00001-of-00002\.parquet: this shard is missing"):
        data.tiny_imagenet("train", parquet)


def test_a_missing_source(tmp_path):
    with pytest.raises(FileNotFoundError, match="GMAR_TINY_IMAGENET"):
        data.tiny_imagenet("valid", tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="expected a folder with valid-"):
        data.tiny_imagenet("valid", tmp_path)


@pytest.fixture
def voc(tmp_path):
    root = tmp_path / "VOCdevkit/VOC2012"
    for folder in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        (root / folder).mkdir(parents=True)
    (root / "ImageSets/Segmentation/val.txt").write_text("one\ntwo\n")
    for name, values in (("one", [8, 15]), ("two", [12])):
        (root / f"JPEGImages/{name}.jpg").write_bytes(jpeg(90, (30, 20)))
        mask = np.zeros((20, 30), np.uint8)
        for k, value in enumerate(values):
            mask[:, 10 * k : 10 * k + 8] = value
        mask[0] = 255
        write_mask(root / f"SegmentationClass/{name}.png", mask)
    return root


def write_mask(file, values):
    picture = Image.fromarray(values.astype(np.uint8), "P")
    picture.putpalette(voc_module._voc_palette().astype(np.uint8).ravel().tolist())
    picture.save(file)


def test_voc_one_record_per_class(voc):
    for source in (voc, voc.parent, voc.parent.parent):
        records = data.voc2012(source)
        assert records["file"][:] == ["one", "two"] and records["label"][:] == [8, 12]  # cat, dog; no person
    mask = np.asarray(records[0]["mask"])
    assert (mask[0] == 255).all() and (mask[1:, :8] == 1).all() and not mask[1:, 8:].any()
    assert records["targets"][0] == list(data.VOC_TO_TINY_IMAGENET["cat"])
    with pytest.raises(ValueError, match="got 21"):
        data.voc2012(voc, classes=21)


def test_coloured_masks_are_read_through_the_palette(voc):
    file = voc / "SegmentationClass/one.png"
    before = np.asarray(data.voc2012(voc)[0]["mask"])
    Image.open(file).convert("RGB").save(file)
    np.testing.assert_array_equal(np.asarray(data.voc2012(voc)[0]["mask"]), before)


def test_broken_voc_names_the_file(voc):
    mask, picture = voc / "SegmentationClass/two.png", voc / "JPEGImages/two.jpg"
    whole = picture.read_bytes()
    picture.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"two\.jpg: not a complete picture"):
        data.voc2012(voc)[1]
    write_mask(mask, np.full((20, 30), 21))
    with pytest.raises(ValueError, match=r"two\.png: mask values \[21\]"):
        data.voc2012(voc)
    mask.write_bytes(mask.read_bytes()[:60])
    with pytest.raises(ValueError, match=r"two\.png: not a complete picture"):
        data.voc2012(voc)
    mask.unlink()
    with pytest.raises(FileNotFoundError, match=r"two\.png: listed in val\.txt, but missing"):
        data.voc2012(voc)
    (voc / "ImageSets/Segmentation/val.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"val\.txt: this list of images is missing"):
        data.voc2012(voc)


def test_two_classes_in_one_photo_are_a_pair(voc):
    mask = np.zeros((20, 30), np.uint8)
    for k, value in enumerate((8, 12, 15, 3)):  # cat, dog, person (no counterpart), bird
        mask[:, 7 * k : 7 * k + 5] = value
    mask[0] = 255
    write_mask(voc / "SegmentationClass/one.png", mask)
    pairs, table = data.voc_pairs(voc), data.VOC_TO_TINY_IMAGENET
    assert set(pairs.column_names) == {"image", "masks", "groups", "file"} and pairs["file"][:] == ["one"] * 3
    groups = [list(table[name]) for name in ("bird", "cat", "dog")]
    assert pairs["groups"][:] == [[groups[0], groups[1]], [groups[0], groups[2]], [groups[1], groups[2]]]
    bird, dog = (np.asarray(m) for m in pairs[1]["masks"])
    np.testing.assert_array_equal(bird, np.where(mask == 255, 255, mask == 3))
    np.testing.assert_array_equal(dog, np.where(mask == 255, 255, mask == 12))
    assert pairs[1]["image"].size == (30, 20)
    assert data.voc_pairs(voc, classes=1000)["groups"][0][1] == list(data.VOC_TO_IMAGENET["cat"])
    with pytest.raises(ValueError, match="got 21"):
        data.voc_pairs(voc, classes=21)


def test_best_target():
    logits = torch.tensor([[0.0, 3.0, 1.0, 2.0], [5.0, 1.0, 2.0, 3.0]])
    assert data.best_target(logits, [[0, 2, 3], [1, 2]]).tolist() == [3, 2]


def test_label_tables_point_at_the_right_words():
    words = [w.split(",")[0] for w in data.words()]
    table = {k: [words[i] for i in v] for k, v in data.VOC_TO_TINY_IMAGENET.items()}
    assert table["bird"] == ["goose", "black stork", "king penguin", "albatross"]
    assert table["boat"] == ["gondola", "lifeboat"]
    assert table["bottle"] == ["beer bottle", "pill bottle", "pop bottle"]
    assert table["bus"] == ["school bus", "trolleybus"]
    assert table["car"] == ["beach wagon", "convertible", "limousine", "police van", "sports car"]
    assert table["cat"] == ["tabby", "Persian cat", "Egyptian cat"]
    assert table["dog"][0] == "Chihuahua" and table["dog"][-1] == "standard poodle"
    single = {"chair": "rocking chair", "cow": "ox", "diningtable": "dining table", "sheep": "bighorn"}
    assert {k: table[k][0] for k in single} == single
    assert table["train"] == ["bullet train", "freight car"]
    assert set(data.VOC_TO_IMAGENET) | set(table) <= set(data.VOC_CLASSES)


def test_photos_need_no_download():
    assert all(samples.photo(name).mode == "RGB" for name in samples.PHOTOS)
    with pytest.raises(ValueError, match="expected one of cat"):
        samples.photo("dog")


@real
def test_real_tiny_imagenet():
    valid = data.tiny_imagenet("valid", REAL / "tiny-imagenet")
    assert len(valid) == 5000 and set(np.bincount(valid["label"][:])) == {25}
    words = [line.split("\t")[1] for line in (REAL / "tiny-imagenet/classes.tsv").read_text().splitlines()[1:]]
    assert words == data.words()


@real
def test_real_voc():
    """All pairs that the list names; a record for every class in a mask that the model knows; see SOURCE.txt there."""
    root = REAL / "VOCdevkit/VOC2012"
    listed = (root / "ImageSets/Segmentation/val.txt").read_text().split()
    records = data.voc2012(REAL)
    assert len(listed) == 597 and {*records["file"]} <= set(listed) and all(records["targets"])
    found = list(zip(records["file"][:], records["label"][:], strict=True))
    assert len(found) == len(set(found))
    known = {k for k, name in enumerate(data.VOC_CLASSES) if name in data.VOC_TO_TINY_IMAGENET}
    for name in listed[::50]:
        inside = set(np.unique(np.asarray(Image.open(root / f"SegmentationClass/{name}.png")))) & known
        assert inside == {label for f, label in found if f == name}
    image, mask = (records[0][k] for k in ("image", "mask"))
    assert image.size == mask.size and set(np.unique(mask)) <= {0, 1, 255}


@real
def test_real_pairs():
    pairs, records = data.voc_pairs(REAL), data.voc2012(REAL)
    known = Counter(records["file"][:])
    assert Counter(pairs["file"][:]) == {name: n * (n - 1) // 2 for name, n in known.items() if n > 1}
    assert len(set(pairs["file"][:])) == 150
    for row in (pairs[i] for i in range(0, len(pairs), 30)):
        (a, b), (first, second) = (np.asarray(m) for m in row["masks"]), row["groups"]
        assert a.shape == b.shape == row["image"].size[::-1] and (a == 1).any() and (b == 1).any()
        assert not ((a == 1) & (b == 1)).any() and ((a == 255) == (b == 255)).all()
        assert first and second and not {*first} & {*second}


def test_the_books_pictures_show_what_the_book_says():
    """The model of photographs names the espresso and the cat first, vit-shapes both shapes of its scene."""
    picture, (scene, masks) = samples.cat_and_coffee(), samples.star_and_cross()
    wide = load_model("vit-small-tiny-imagenet", image_size=(224, 336))
    assert picture.size == (450, 300)
    assert wide.predict(picture, top=2)["label"].tolist() == ["espresso", "Egyptian cat"]
    vit = load_model("vit-shapes")
    best = vit.model(vit.preprocess(scene)).logits[0].topk(2).indices.tolist()
    assert {vit.label(k) for k in best} == set(masks) == {"star", "cross"}
    assert all(mask.shape == (256, 256) and 0.02 < mask.mean() < 0.2 for mask in masks.values())

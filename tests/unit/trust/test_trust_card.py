"""The card: planted models get what they deserve; one file; whatever the library takes; goes on where it stopped."""

import os
import re
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch
from families import build
from PIL import Image
from planted import cornered, ignoring, noise_method, photos, sound, untrained, vit_of

import gmar_utils
from gmar_utils import METHODS, load_model, metrics, trust
from gmar_utils.trustcard import health, measures
from gmar_utils.trustcard.photos import read_photos

pytestmark = pytest.mark.filterwarnings("ignore:The gradient of a layer is zero")


def made(model, n=12, seed=0, methods=("legrad",), labelled=False, **options):
    pictures, labels, masks = photos(seed, n)
    given = [{"image": p, "label": k, "mask": m} for p, k, m in zip(pictures, labels, masks, strict=True)]
    given = given if labelled else dict(zip((f"{i}.png" for i in range(n)), pictures, strict=True))
    return trust(vit_of(model), given, methods=methods, quick=True, progress=False, **options)


@pytest.fixture(scope="module")
def card():
    methods = {"legrad": "legrad", "rollout": "rollout", "noise": noise_method}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return made(sound(3), seed=3, methods=methods, labelled=True)


def test_a_sound_model_gets_its_sound_map(card):
    assert card.recommendation.show == "legrad"
    assert {x.colour for x in card.model} == {"green"}
    assert not [x for x in card.lights if x.method == "legrad" and x.colour == "red"]


def test_random_and_class_blind_maps_are_refused(card):
    assert set(card.recommendation.avoid) == {"noise", "rollout"}
    assert "class" in card.recommendation.avoid["rollout"]


@pytest.mark.parametrize("seed", [4, 5])
@pytest.mark.parametrize("broken, check", [(ignoring, "answers"), (untrained, "last-block"), (cornered, "place")])
def test_a_broken_model_is_warned_of(broken, check, seed):
    found = made(broken(seed), n=8, seed=seed, methods=["attention"])
    assert check in [x.check for x in found.model if x.colour == "red"]
    assert found.recommendation.show is None
    assert found.recommendation.sentence.startswith("Show no map of this model")
    assert found.recommendation.sentence in found.html.replace("&#39;", "'")


def test_the_page_is_one_file_that_fetches_nothing(card, tmp_path):
    card.save(tmp_path / "trust.html")
    page = (tmp_path / "trust.html").read_text(encoding="utf-8")
    assert len(page) < 10e6
    assert not re.search(r"""(src|href|url)\s*[=(]\s*["']?(https?:)?//""", page)
    assert all(s.startswith("data:") for s in re.findall(r'<img src="([^"]*)"', page))
    assert "@import" not in page and not re.search(r"^\s*(import|export) ", page, re.MULTILINE)
    assert "Content-Security-Policy" in page and "prefers-color-scheme: dark" in page and "@media print" in page
    assert page.count("<article") == 12 and card.recommendation.sentence in page
    for title in ("LeGrad", "Attention rollout", "noise", "Random", "Centre"):
        assert f"{title}</figcaption>" in page
    assert page.count('class="live"') == 12
    assert page.count("<h4>") == 12 + sum(r["answers"]["strong"] for r in card.results)


def test_chapters_are_linked(card):
    assert 'href="notebooks/07_sanity.html"' in card.html


def test_a_notebook_shows_it(card):
    shown = card._repr_html_()
    assert shown.startswith("<iframe srcdoc=") and '"' not in shown.split('srcdoc="')[1].split('" title')[0]
    assert len(card.frame()) == len(card.lights) + len(card.model)
    assert card.recommendation.sentence in repr(card)


def test_saved_as_a_page_or_not_at_all(card, tmp_path):
    with pytest.raises(ValueError, match=r"trust\.html"):
        card.save(tmp_path / "trust.pdf")
    assert not list(tmp_path.iterdir())


def test_names_and_labels_are_text():
    pictures, _, _ = photos(0, 1)
    name = "</script><script>alert(1)</script>.png"
    page = trust(vit_of(sound(0)), {name: pictures[0]}, methods=["attention"], quick=True, progress=False).html
    assert "<script>alert" not in page and page.count("</script>") == 2


def test_few_photos_say_so():
    found = made(sound(0), n=2)
    assert {x.colour for x in found.lights} == {"none"} and found.recommendation.show is None
    assert "6 are needed" in found.html
    assert "cannot be told with 2 photos" in found.recommendation.sentence


def test_bad_photos_are_named_and_not_fatal(tmp_path):
    pictures, labels, masks = photos(0, 2)
    for i, p in enumerate(pictures):
        Image.fromarray(p).save(tmp_path / f"{i}.png")
    (tmp_path / "broken.jpg").write_bytes(b"no picture")
    (tmp_path / "masks").mkdir()
    Image.fromarray(255 * masks[0]).save(tmp_path / "masks" / "0.png")
    Image.fromarray(masks[1][:5]).save(tmp_path / "masks" / "1.png")  # of another size
    (tmp_path / "labels.csv").write_text(f"file,label\n0.png,{labels[0]}\n1.png,nothing\n")
    files = [tmp_path / "0.png", tmp_path / "1.png", tmp_path / "broken.jpg", tmp_path / "absent.png"]
    found = trust(
        vit_of(sound(0)),
        files,
        tmp_path / "labels.csv",
        tmp_path / "masks",
        methods=["legrad"],
        quick=True,
        progress=False,
    )
    assert [p.name for p in found.photos] == ["0.png", "1.png"]
    for text in ("broken.jpg", "absent.png", "label of 1.png", "mask of 1.png"):
        assert any(text in p for p in found.problems) and text in found.html
    assert found.photos[0].label == labels[0] and int(found.photos[0].mask.sum()) == 144
    assert found.results[0]["object"] and not found.results[1]["object"]
    with pytest.raises(ValueError, match="No photo can be used"):
        trust(vit_of(sound(0)), files[2:], progress=False)


@pytest.mark.parametrize(
    "table, wrong", [("name,label\na,1\n", "columns file and label"), ("", "columns file and label")]
)
def test_a_table_of_labels_that_is_none(tmp_path, table, wrong):
    (tmp_path / "labels.csv").write_text(table)
    with pytest.raises(ValueError, match=wrong):
        trust(vit_of(sound(0)), photos(0, 1)[0], tmp_path / "labels.csv", progress=False)


def test_boxes_are_masks(tmp_path):
    (tmp_path / "labels.csv").write_text("file,label,x0,y0,x1,y1\n0.png,1,4,8,10,20\n")
    pictures, _, _ = photos(0, 1)
    found = trust(
        vit_of(sound(0)),
        {"0.png": pictures[0]},
        tmp_path / "labels.csv",
        methods=["legrad"],
        quick=True,
        progress=False,
    )
    assert found.photos[0].mask.nonzero().aminmax(dim=0)[0].tolist() == [8, 4] and found.results[0]["object"]


@pytest.mark.parametrize("steps", [5, None])
def test_fewer_passes_give_the_metrics_own_numbers(steps):
    vit, (picture, *_) = vit_of(sound(0)), photos(0, 1)[0]
    photo = read_photos(vit, [picture])[0][0]
    said = measures.answers(vit, photo.pixel_values)
    values = torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(0))
    values[2] = 0  # no order at all
    maps = dict(zip("abc", values.tolist(), strict=True)) | {"random": values[0].tolist()}
    protocol = {"steps": steps, "draws": 2, "batch_size": 7, "precision": "float32"}
    found = measures.faithful_values(vit, photo, said, maps, protocol)
    x = photo.pixel_values.expand(3, -1, -1, -1)
    for name, metric, options in (("srg", metrics.srg, {"steps": steps}), ("saco", metrics.saco, {})):
        wanted = metric(vit.model, x, values, said["target"], **options)
        assert [found[name][k] for k in "abc"] == pytest.approx(wanted.tolist(), abs=1e-6)
    assert found["srg"]["random"] == 0 and abs(found["saco"]["random"]) < 1


def test_the_blocks_before_the_last_run_once_for_all_shuffles():
    model, x = sound(0), torch.rand(5, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    own, *others = health._shuffled(model, x, batch_size=3)
    assert len(others) == health.SHUFFLES and torch.allclose(own, model(x), atol=0.05)
    copied, generator = sound(0), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in copied.blocks[-1].parameters():
            p.copy_(p.flatten()[torch.randperm(p.numel(), generator=generator)].view_as(p))
        assert torch.allclose(others[0], copied(x), atol=0.05) and not torch.allclose(own, others[0], atol=0.1)


def test_goes_on_where_it_was_stopped(tmp_path, monkeypatch):
    calls, stops = [], [3]
    real = measures.faithful_values

    def counted(vit, photo, *rest):
        calls.append(photo.name)
        if len(calls) in stops:
            stops.clear()
            raise KeyboardInterrupt
        return real(vit, photo, *rest)

    monkeypatch.setattr(measures, "faithful_values", counted)
    with pytest.raises(KeyboardInterrupt):
        made(sound(0), n=4, work=tmp_path / "w")
    found = made(sound(0), n=4, work=tmp_path / "w")
    assert calls == ["0.png", "1.png", "2.png", "2.png", "3.png"]
    whole = made(sound(0), n=4)
    assert found.lights == whole.lights and found.results == whole.results
    calls.clear()
    some = sorted((tmp_path / "w").glob("*.faithful.json"))
    some[0].write_text(some[0].read_text()[:-9])  # cut short
    some[1].write_text(some[1].read_text().replace("0.", "1.", 1))  # a changed number
    assert made(sound(0), n=4, work=tmp_path / "w").results == whole.results and len(calls) == 2
    calls.clear()
    made(sound(1), n=4, work=tmp_path / "w")  # other weights
    assert len(calls) == 4


def test_three_labels_grey_and_registers():
    model = build("dinov2-registers", labels=3, num_channels=1)
    pictures = [p[..., 0] for p in photos(0, 2)[0]]
    vit = load_model(model, mean=[0.5], std=[0.5], size=32, device="cpu")
    found = trust(vit, pictures, methods=["gmar", "legrad"], quick=True, progress=False)
    assert len(found.results) == 2 and found.html.count('class="live"') == 2
    assert len(found.results[0]["answers"]["top"]) == 3


@pytest.mark.parametrize(
    "labels, kind", [(1, "regression"), (2, "regression"), (3, "multi_label_classification"), (1, None)]
)
def test_heads_of_every_kind(labels, kind):
    model = build("vit", labels=labels)
    model.config.problem_type = kind
    vit = load_model(model, mean=[0.5] * 3, std=[0.5] * 3, size=32, device="cpu")
    found = trust(vit, photos(0, 6)[0], methods=["legrad"], quick=True, progress=False)
    top = found.results[0]["answers"]["top"]
    assert all((t["probability"] is None) == (kind == "regression") for t in top)
    of_class = next(x for x in found.lights if x.check == "class")
    assert (of_class.colour == "none" and of_class.sentence.startswith("Not asked")) == (
        kind == "regression" and labels == 1
    )
    trained = next((x for x in found.model if x.check == "last-block"), None)
    assert trained is None or (trained.colour == "none") == (kind == "regression")
    assert found.html.count("<article") == 6


def test_all_methods_and_all_steps():
    model = build("vit", labels=3)
    vit = load_model(model, mean=[0.5] * 3, std=[0.5] * 3, size=32, device="cpu")
    found = trust(vit, photos(0, 1)[0], progress=False)
    judged = {k for k, m in found.methods.items() if not m.reference}
    assert (
        judged
        == set(METHODS) - set(measures.REFERENCES)
        == set(found.results[0]["faithful"]["srg"]) - {*measures.REFERENCES}
    )
    assert not found.problems and found.provenance["protocol"]["steps"] is None


def test_a_method_that_fails_is_named_and_the_others_judged():
    def fails(trace):
        raise ValueError("no such layer")

    found = made(sound(0), n=2, methods={"legrad": "legrad", "fails": fails})
    assert any("fails gives no map of 2 photos" in p and "no such layer" in p for p in found.problems)
    assert found.results[0]["maps"]["maps"].keys() >= {"legrad", "center"}


def test_wrong_arguments_before_anything_runs():
    for options in ({"methods": ["gmrr"]}, {"methods": ["random"]}, {"batch_size": 0}):
        with pytest.raises(ValueError):
            trust(vit_of(sound(0)), photos(0, 1)[0], progress=False, **options)


def test_the_function_stays_the_function():
    assert gmar_utils.trust is trust and callable(gmar_utils.trust)
    assert gmar_utils.TrustCard.__name__ == "TrustCard"


def test_command_line(tmp_path):
    model = build("vit", labels=3)
    model.save_pretrained(tmp_path / "model")
    from transformers import ViTImageProcessorPil

    ViTImageProcessorPil(size={"height": 32, "width": 32}).save_pretrained(tmp_path / "model")
    (tmp_path / "photos").mkdir()
    rng = np.random.default_rng(0)
    for i in range(2):
        Image.fromarray(rng.integers(0, 255, (40, 50, 3), dtype=np.uint8)).save(tmp_path / "photos" / f"{i}.png")

    def gmar(*arguments):
        return subprocess.run(
            [sys.executable, "-m", "gmar_utils", "trust", *arguments],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            env=os.environ | {"HF_HUB_OFFLINE": "1"},
        )

    run = gmar("model", "photos", "--quick", "--methods", "attention", "legrad")
    assert run.returncode == 0, run.stderr
    assert "For this model, on these 2 photos" in run.stdout
    assert (tmp_path / "trust.html").stat().st_size > 10_000 and (tmp_path / "trust.work").is_dir()
    for wrong in (["model"], ["model", "photos", "--data", "shapes"], ["model", "photos", "--out", "a/b.html"]):
        run = gmar(*wrong)
        assert run.returncode == 2 and "Traceback" not in run.stderr and len(run.stderr.strip().splitlines()) == 1


def test_seeded_tensors_are_photos_too():
    batch = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    found = trust(vit_of(sound(0)), batch, methods=["attention"], quick=True, progress=False)
    assert [p.name for p in found.photos] == ["photo 1", "photo 2"]

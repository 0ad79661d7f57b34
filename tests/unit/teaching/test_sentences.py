"""Sentences with a planted cue: their truth, the bundled model of words, and how it is shown and counted."""

import pytest
import torch

from gmar_utils import trace
from gmar_utils.teaching import words
from gmar_utils.teaching.results import cues


def test_a_sentence_says_what_its_label_says():
    for s in words.sentences(300, 3) + words.sentences(300, 3, words.HELD_OUT):
        cue = s.words[s.cue]
        side = next(k for k, found in words.CUES.items() if cue in found)
        assert sum(w in words.CUES["good"] + words.CUES["bad"] for w in s.words) == 1
        before = s.words[s.cue - 1] if s.cue else ""
        assert (before in words.NEGATIONS) == (s.negation is not None)
        assert s.label == (words.LABELS.index(side) if s.negation is None else 1 - words.LABELS.index(side))
        assert s.negation in (None, s.cue - 1)


def test_same_seed_same_sentences_and_the_share_of_negations():
    assert words.sentences(50, 1) == words.sentences(50, 1) != words.sentences(50, 2)
    for share in (0.3, 0.5):
        found = [s.negation is not None for s in words.sentences(3000, 1, negated=share)]
        assert abs(sum(found) / 3000 - share) < 0.04


def test_held_out_ways_are_others_and_hold_no_new_word():
    assert not set(words.TEMPLATES) & set(words.HELD_OUT)
    assert len(words.HELD_OUT) == pytest.approx(len(words.TEMPLATES) / 3, abs=1)
    seen = {w for s in words.sentences(5000, 0, negated=0.3) for w in s.words}
    assert seen == set(words.vocabulary())


def test_one_token_a_word():
    tokenizer = words.tokenizer()
    for s in words.sentences(50, 4):
        ids = words.ids_of(tokenizer, [s])[0].tolist()
        assert tokenizer.convert_ids_to_tokens(ids) == ["[CLS]", *s.words, "[SEP]"]


@pytest.fixture(scope="module")
def bundled():
    return words.load()


def test_the_bundled_model_judges_held_out_sentences(bundled):
    assert words.accuracy(*bundled, words.sentences(400, 21, words.HELD_OUT)) >= 98


def test_leaving_the_cue_out_costs_most(bundled):
    model, tokenizer = bundled
    sentence = next(s for s in words.sentences(20, 5, words.HELD_OUT) if s.negation is None)
    seen = trace(model, words.ids_of(tokenizer, [sentence]), sentence.label)
    scores = words.left_out(seen)
    assert scores.shape == (1, len(sentence.words) + 2) and scores[0, 0] == scores[0, -1] == 0
    k = sentence.cue
    shorter = " ".join(w for i, w in enumerate(sentence.words) if i != k)
    y = model(**tokenizer(shorter, return_tensors="pt")).logits[0, sentence.label]
    torch.testing.assert_close(scores[0, 1 + k], seen.logits[0, sentence.label] - y.detach())


def test_rows_count_the_strongest_words(bundled, monkeypatch):
    """Methods that point where they are told to."""
    given = words.sentences(40, 6)
    truth = {}

    def pointing(label):
        def scores(seen):
            found = torch.zeros(seen.pixel_values.shape)
            found[:, 0], found[:, -1] = 9, 9  # [CLS] and [SEP] do not count
            for row, ids in zip(found, seen.pixel_values.tolist(), strict=True):
                cue, negation = truth[tuple(ids)]
                row[1 + cue] = 2 if label == "right" else -2
                if negation is not None:
                    row[1 + negation] = 1 if label == "right" else -2
            return found

        return scores

    for s in given:
        truth[tuple(words.ids_of(bundled[1], [s])[0].tolist())] = (s.cue, s.negation)
    monkeypatch.setattr(cues, "LABELS", ["right", "wrong"])
    monkeypatch.setattr(cues, "method", pointing)
    rows = cues.rows_for(*bundled, given)
    means = rows.groupby(["method", "metric"])["value"].mean()
    assert set(rows["metric"]) == {"cue", "cue_or_negation", "both"}
    assert (means["right"] == 100).all() and (means["wrong"] == 0).all()
    assert len(rows) == 2 * sum(1 if s.negation is None else 2 for s in given)


def test_coloured_words_are_html():
    shown = words.Coloured({"GMAR": (["a", "<b>"], [0.0, 2.0])})._repr_html_()
    assert "&lt;b&gt;" in shown and "<b>" not in shown and "#ffffff" not in shown.split("&lt;b")[0][-120:]
    assert shown.count("<span") == 2 and "GMAR" in shown

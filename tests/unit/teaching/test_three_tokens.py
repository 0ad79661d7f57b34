"""The three-token ViT: the numbers that prose, docstring and exercises state, worked out again the slow way."""

import doctest
import json
import re
from pathlib import Path

import pytest
import torch

from gmar_utils import METHODS, explain, trace
from gmar_utils.methods.activation import cdam, gradcam
from gmar_utils.methods.baselines import attention, chefer
from gmar_utils.methods.layerwise import layer_maps
from gmar_utils.methods.perturbation import occlusion
from gmar_utils.methods.propagation import attnlrp, libra
from gmar_utils.methods.weighting import alpha_polynomial, head_weights, weighted_rollout
from gmar_utils.teaching import three_tokens
from gmar_utils.teaching.three_tokens import ATTENTION, CAT, CUP, HEAD, PICTURE, ThreeTokenViT

NOTEBOOKS = Path(__file__).parents[3] / "notebooks"


@pytest.fixture(scope="module")
def model():
    return ThreeTokenViT()


def close(got, expected):
    torch.testing.assert_close(torch.as_tensor(got), torch.tensor(expected), rtol=0, atol=1e-4)


def test_the_doctest_passes():
    result = doctest.testmod(three_tokens)
    assert result.attempted > 15 and result.failed == 0


def test_attention_is_what_it_says(model):
    for layer, seen in zip(ATTENTION, trace(model, PICTURE).attentions, strict=True):
        close(seen[0], layer)
        close(torch.tensor(layer).sum(-1), [[1.0, 1.0, 1.0]] * 2)


def test_tokens_and_logits_by_hand(model):
    """Plain lists and loops, no tensor operation shared with the model."""
    tokens = [[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]]
    for layer in ATTENTION:
        tokens = [
            [tokens[i][h] + sum(layer[h][i][j] * tokens[j][h] for j in range(3)) for h in range(2)] for i in range(3)
        ]
    assert tokens[0] == pytest.approx([1.64, 1.24])
    logits = [sum(HEAD[k][h] * tokens[0][h] for h in range(2)) for k in range(2)]
    assert logits == pytest.approx([6.16, 5.36])
    close(model(PICTURE), [logits])


def test_the_truth_is_the_contribution_of_each_patch(model):
    """Without the cup patch the logits are what the cat patch gives, and the two parts add up."""
    alone = [PICTURE * torch.tensor([[[[1.0, 0.0]]]]), PICTURE * torch.tensor([[[[0.0, 1.0]]]])]
    close(model(alone[0]), [[4.92, 1.64]])
    close(model(alone[1]), [[1.24, 3.72]])


@pytest.mark.parametrize("target", [CAT, CUP])
def test_gradients_by_finite_differences(model, target):
    """Raise one attention number at a time by hand, in a loop that knows nothing of autograd."""

    def logit(attention):
        tokens = PICTURE[0, :, 0].T.tolist()
        tokens = [[0.0, 0.0], *tokens]
        for layer in attention:
            tokens = [
                [tokens[i][h] + sum(layer[h][i][j] * tokens[j][h] for j in range(3)) for h in range(2)]
                for i in range(3)
            ]
        return sum(HEAD[target][h] * tokens[0][h] for h in range(2))

    seen = trace(model, PICTURE, target=target)
    base = logit(ATTENTION)
    for layer in range(2):
        for head in range(2):
            for i in range(3):
                for j in range(3):
                    moved = [[[list(row) for row in h] for h in heads] for heads in ATTENTION]
                    moved[layer][head][i][j] += 1e-3
                    slope = (logit(moved) - base) / 1e-3
                    assert seen.gradients[layer][0, head, i, j].item() == pytest.approx(slope, abs=1e-4)


def test_head_weights(model):
    gradients = trace(model, PICTURE, target=CAT).gradients
    close(gradients[0][0, 0], [[0.0, 3.6, 0.0], [0.0, 1.8, 0.0], [0.0, 0.6, 0.0]])
    close(gradients[1][0, 0], [[1.8, 4.2, 1.2], [0.0, 0.0, 0.0], [0.0, 0.0, 0.0]])
    close(torch.cat(head_weights(gradients, "l1")), [[0.75, 0.25], [0.8, 0.2]])
    close(torch.cat(head_weights(gradients, "l2")), [[0.75, 0.25], [0.7867, 0.2133]])
    close(torch.cat(head_weights(trace(model, PICTURE, target=CUP).gradients, "l1")), [[0.25, 0.75], [4 / 13, 9 / 13]])


@pytest.mark.parametrize(
    ("norm", "variant", "alpha", "expected"),
    [
        (None, "output-first", 1.0, [0.43, 0.32, 0.25]),
        (None, "report", 1.0, [0.46, 0.265, 0.275]),
        (None, "paper", 1.0, [1.54, 0.66, 0.80]),
        ("l1", "paper", 1.0, [1.55, 0.80, 0.65]),
        ("l1", "paper", 0.375, [0.8, 0.475, 0.475]),
        ("l1", "output-first", 1.0, [0.415, 0.37, 0.215]),
    ],
)
def test_rollouts(model, norm, variant, alpha, expected):
    seen = trace(model, PICTURE, target=CAT)
    weights = head_weights(seen.gradients, norm)
    close(weighted_rollout(seen.attentions, weights, seen.readout, alpha, variant), [expected])


def test_alpha_is_a_straight_line_that_changes_the_winner(model):
    seen = trace(model, PICTURE, target=CAT)
    weights = head_weights(seen.gradients, "l1")
    line = alpha_polynomial(seen.attentions, weights, seen.readout)
    close(line, [[[0.35, 0.28, 0.37], [1.2, 0.52, 0.28]]])
    below, above = (weighted_rollout(seen.attentions, weights, seen.readout, a)[0] for a in (0.37, 0.38))
    assert below[1] < below[2] and above[1] > above[2]


def test_the_other_maps(model):
    seen = trace(model, PICTURE, target=CAT)
    close(seen.patches(attention(seen)), [[[0.4, 0.4]]])
    close(seen.patches(chefer(seen)), [[[3.116, 0.8272]]])
    close(seen.patches(gradcam(seen)), [[[1.76, 0.96]]])
    close(layer_maps(seen)[0, :, 1:], [[0.5, 0.1667], [0.7333, 0.4]])


def test_signed_maps(model):
    """Per patch: 3 × its own channel's way to [CLS] for the cat, 1 × for the cup."""
    seen = trace(model, PICTURE, target=CAT)
    (a1, b1), (a2, b2) = ATTENTION
    once = [(a1[0][1], a2[0][1]), (b1[0][2], b2[0][2])]  # through the first attention alone, the second alone
    twice = [sum(a2[0][j] * a1[j][1] for j in range(3)), sum(b2[0][j] * b1[j][2] for j in range(3))]
    whole = [k * (sum(o) + t) for k, o, t in zip(HEAD[CAT], once, twice, strict=True)]
    assert whole == pytest.approx([4.92, 1.24])
    for scores in (libra(seen, layers="input"), occlusion(seen, size=1)):
        close(seen.patches(scores), [[whole]])
    shares = [k * (sum(o) / 2 + t / 4) for k, o, t in zip(HEAD[CAT], once, twice, strict=True)]
    close(seen.patches(attnlrp(seen)), [[shares]])
    close(seen.patches(attnlrp(seen)), [[[2.13, 0.56]]])
    close(libra(seen, layers="upper").sum(), model(PICTURE)[0, CAT].item())  # no biases: every block's sum is y
    close(libra(seen).sum(), 2 * model(PICTURE)[0, CAT].item())
    close(seen.patches(cdam(seen)), [[[1.4 * 3 * a2[0][1] + 0.2 * b2[0][1], 0.4 * 3 * a2[0][2] + 1.2 * b2[0][2]]]])


def test_patch_rows_of_the_last_layer_play_no_part_but_in_the_input_first_map(model):
    changed = [[[list(row) for row in head] for head in heads] for heads in ATTENTION]
    for head in changed[1]:
        head[1] = head[2] = [0.2, 0.6, 0.2]
    before, after = (trace(m, PICTURE, target=CAT) for m in (model, ThreeTokenViT(changed)))
    close(after.logits, before.logits.tolist())
    for variant, same in (("output-first", True), ("report", False), ("paper", False)):
        maps = []
        for t in (before, after):
            maps.append(weighted_rollout(t.attentions, head_weights(t.gradients, "l1"), t.readout, variant=variant))
        assert torch.allclose(*maps, atol=1e-6) == same, variant


@pytest.mark.parametrize("name", [n for n in METHODS if n not in ("random", "center")])
def test_explain_takes_it_like_any_model(model, name):
    options = {"size": 1} if name == "occlusion" else {}  # one square of 2 × 2 would hide both patches
    maps = explain(model, PICTURE, name, target=CAT, upsample=False, **options)
    assert maps.shape == (1, 1, 2)
    if name != "attention":  # its two patches tie: a constant map becomes 0
        close(maps, [[[1.0, 0.0]]])


def test_chapters_state_these_numbers():
    """Each literal that chapters 1 to 4 print in prose, beside the value computed above."""
    said = {
        "01_attention": ["0.2,\\ 0.6,\\ 0.2", "6.16", "5.36", "1.64", "1.24", "4.92"],
        "02_rollout": ["(1.72,\\ 1.28,\\ 1.00)", "(1.84,\\ 1.06,\\ 1.10)", "(0.43, 0.32, 0.25)"],
        "03_gmar": ["0.75, 0.25", "0.80, 0.20", "(1.55, 0.80, 0.65)"],
        "03_alpha": ["0.28 + 0.52 α", "0.37 + 0.28 α", "0.375"],
        "04_legrad": ["0.6167", "0.2833"],
        "04_grad_cam": ["1.76", "0.96", "3.116", "0.827", "3.72"],
    }
    for name, literals in said.items():
        cells = json.loads((NOTEBOOKS / f"{name}.ipynb").read_text(encoding="utf8"))["cells"]
        prose = re.sub(r"\s+", " ", " ".join("".join(c["source"]) for c in cells if c["cell_type"] == "markdown"))
        missing = [x for x in literals if x not in prose]
        assert not missing, f"{name} no longer states {missing}"

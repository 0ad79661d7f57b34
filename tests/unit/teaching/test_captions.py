"""What is true of a scene of two objects, and stays so when the picture is turned."""

import numpy as np
import torch

from gmar_utils.teaching import captions as c

STAR, CROSS = c.NAMES.index("star"), c.NAMES.index("cross")


def said(mask):
    return {text for text, true in zip(c.CAPTIONS, mask[0].tolist(), strict=True) if true}


def test_a_scene_by_hand():
    labels = torch.tensor([[STAR, CROSS]])
    true, unclear = c.truth(labels, torch.tensor([[-20.0, 2.0]]))  # the star 20 pixels to the left, 2 below
    assert said(true) == {"a star", "a cross", "a star left of a cross"}
    assert said(unclear) == {"a star above a cross", "a cross above a star"}
    true, unclear = c.truth(labels, torch.tensor([[9.0, 15.0]]))
    assert said(true) == {"a star", "a cross", "a cross left of a star", "a cross above a star"} and not said(unclear)


def test_drawn_scenes_are_what_their_captions_say():
    images, labels, apart = c.scenes(64, 0)
    assert images.shape == (64, 64, 64, 3) and images.dtype == torch.uint8
    true, unclear = c.truth(labels, apart)
    assert (true[:, : len(c.SINGLES)].sum(1) == 2).all() and not (true & unclear).any()
    relations = true[:, len(c.SINGLES) :].sum(1) + unclear[:, len(c.SINGLES) :].sum(1) / 2
    assert (relations == 2).all()  # each axis is said, or not clear both ways


def test_turning_a_picture_turns_what_is_true_of_it():
    torch.manual_seed(0)
    pixels = torch.zeros(64, 3, 64, 64)
    places = np.random.default_rng(0).integers(5, 59, (64, 2, 2))
    for i, ((x0, y0), (x1, y1)) in enumerate(places):
        pixels[i, 0, y0, x0], pixels[i, 1, y1, x1] = 1, 1
    keep = (places[:, 0] != places[:, 1]).any(1)
    apart = torch.tensor(places[:, 0] - places[:, 1])
    turned, moved = c.turned(pixels, apart)
    for picture, found in zip(turned[keep], moved[keep], strict=True):
        first, second = (picture[k].nonzero()[0].flip(0) for k in (0, 1))
        assert torch.equal(first - second, found)


def test_the_image_tower_begins_as_vit_shapes():
    words = c.tokenizer()
    pixels = torch.randn(4, 3, 64, 64)
    clip = c.untrained(words, pixels)
    vit = c.load_model("vit-shapes", device="cpu").model
    assert torch.equal(
        clip.vision_model.encoder.layers[1].mlp.fc1.weight, vit.vit.layers[1].state_dict()["mlp.fc1.weight"]
    )
    with torch.no_grad():
        ours = clip.vision_model.embeddings(pixels)
        torch.testing.assert_close(ours, vit.vit.embeddings(pixels), atol=1e-5, rtol=1e-5)
    assert all(words.unk_token_id not in ids for ids in words(c.CAPTIONS)["input_ids"])


def test_the_loss_goes_down_on_a_few_scenes():
    torch.manual_seed(0)
    words, (images, labels, apart) = c.tokenizer(), c.scenes(16, 0)
    pixels = images.permute(0, 3, 1, 2) / 127.5 - 1
    clip = c.untrained(words, pixels)
    optimiser, losses = torch.optim.AdamW(clip.parameters(), lr=1e-3), []
    for _ in range(12):
        loss = c.loss_of(clip, words, pixels, labels, apart)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert all(np.isfinite(losses)) and losses[-1] < 0.7 * losses[0]

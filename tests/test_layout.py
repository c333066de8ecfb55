"""Block layout and training masks, against the published conditioning_fn."""

import json

import pytest
import torch
from safetensors.torch import load_file

from mcvd.errors import McvdError
from mcvd.layout import BlockLayout, Masking, hide, split


def test_layout_counts():
    layout = BlockLayout(5, 4, 3)
    assert (layout.frames, layout.condition_frames) == (12, 8)


@pytest.mark.parametrize("counts", [(5, 0, 5), (-1, 5, 0), (5, 5, -2)])
def test_layout_refuses_impossible_counts(counts):
    with pytest.raises(McvdError):
        BlockLayout(*counts)


@pytest.mark.parametrize("options", [{"past": 1.5}, {"future": -0.1}, {"past": 0.5, "future": 0.3, "together": True},
                                     {"together": True}])  # fmt: skip
def test_masking_refuses_impossible_probabilities(options):
    with pytest.raises(McvdError):
        Masking(**options)


def test_masking_allows_what_training_showed():
    pairs = [(past, future) for past in (False, True) for future in (False, True)]
    assert [Masking().allows(*pair) for pair in pairs] == [False, False, False, True]
    assert [Masking(0.5, 0.5).allows(*pair) for pair in pairs] == [True] * 4
    assert [Masking(0.5, 0.5, together=True).allows(*pair) for pair in pairs] == [True, False, False, True]
    assert [Masking(0.0, 1.0).allows(*pair) for pair in pairs] == [False, False, True, False]
    assert Masking().combinations(BlockLayout(2, 5)) == {(True, False)}
    assert Masking(0.5, 0.5, together=True).combinations(BlockLayout(2, 5)) == {(True, False), (False, False)}


def test_draw_hides_with_the_given_probability():
    past, future = Masking(0.25, 0.75).draw(20_000, generator=torch.Generator().manual_seed(0))
    assert abs(past.float().mean() - 0.75) < 0.02
    assert abs(future.float().mean() - 0.25) < 0.02
    assert abs((past & future).float().mean() - 0.1875) < 0.02
    past, future = Masking(0.5, 0.5, together=True).draw(64)
    assert torch.equal(past, future)


def test_draw_at_the_ends():
    zeros = torch.zeros(2, 3)
    assert all(seen.all() for seen in Masking(0, 0).draw(3, uniforms=zeros))
    assert not any(seen.any() for seen in Masking(1, 1).draw(3, uniforms=zeros + 0.999999))
    assert not any(seen.any() for seen in Masking(0.5, 0.5).draw(3, uniforms=zeros + 0.5))  # seen only above
    with pytest.raises(McvdError, match=r"\(2, 4\)"):
        Masking().draw(4, uniforms=zeros)


def test_split_and_hide():
    video = torch.arange(1, 11).float().reshape(1, 10, 1, 1, 1).expand(2, -1, 3, 2, 2)
    past, current, future = split(video[:, :7], BlockLayout(2, 3, 2))
    assert [part[0, :, 0, 0, 0].tolist() for part in (past, current, future)] == [[1, 2], [3, 4, 5], [6, 7]]
    hidden = hide(past, torch.tensor([False, True]))
    assert not hidden[0].any()
    assert torch.equal(hidden[1], past[1])
    assert hide(past[:, :0], torch.tensor([False, True])).shape == (2, 0, 3, 2, 2)
    with pytest.raises(McvdError, match=r"have shape \(B, 7, C, H, W\), not \(2, 10, 3, 2, 2\)"):
        split(video, BlockLayout(2, 3, 2))


@pytest.mark.oracle
def test_conditioning_equals_the_published_one(oracle_dir):
    recorded = load_file(oracle_dir / "conditioning_fn.safetensors")
    cases = json.loads((oracle_dir / "conditioning_fn.json").read_text())
    assert cases
    for case in cases:
        i = case["i"]
        layout = BlockLayout(case["num_frames_cond"], case["num_frames"], case["num_frames_future"])
        masking = Masking(case["prob_mask_cond"], case["prob_mask_future"], case["prob_mask_sync"])
        video = recorded[f"{i}.X"]
        # The published code draws only when it compares: for the past if its probability is above 0, then for the
        # future if there is one and its probability is between 0 and 1 and the past's draw is not shared.
        draws = iter([recorded[f"{i}.rand{j}"] for j in range(case["rand_draws"])])
        uniforms = torch.zeros(2, len(video))
        if masking.past > 0:
            uniforms[0] = next(draws)
        if layout.future and 0 < masking.future < 1 and not masking.together:
            uniforms[1] = next(draws)
        assert next(draws, None) is None

        past, current, future = split(video, layout)
        past_seen, future_seen = masking.draw(len(video), uniforms=uniforms)
        condition = torch.cat([hide(past, past_seen), hide(future, future_seen)], dim=1)
        assert torch.equal(condition.flatten(1, 2), recorded[f"{i}.cond"]), case
        assert torch.equal(current.flatten(1, 2), recorded[f"{i}.pred"]), case
        if f"{i}.cond_mask" in recorded:
            assert torch.equal(past_seen.int(), recorded[f"{i}.cond_mask"].int()), case

"""What the model is given may be incomplete or wrong: single frames hidden, and noise on known frames."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import mcvd.rollout
import tiny
from mcvd.diffusion.gaussian import add_noise
from mcvd.draw import Draw, generator_at
from mcvd.errors import McvdError
from mcvd.layout import BlockLayout, Masking, hide, split
from mcvd.model import VideoDiffusion
from mcvd.networks.unet import time_embedding
from mcvd.planner import _Planner, plan

CPU = torch.device("cpu")
IN_PART = Masking(0.5, 0.5, frames=0.4)
LAYOUT = tiny.NETWORK["layout"]  # 2 past, 3 current, 1 future
FAST = {"solver": "dpm++", "steps": 2}


def frames(clips, count):
    return torch.rand(clips, count, 1, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1


# --- what is drawn ----------------------------------------------------------------------------------------------------


def test_options_leave_the_random_numbers_that_there_were_as_they_were():
    plain = tiny.model().draw(6, generator_at(3, 7, CPU))
    assert plain[4:] == (None, None, None)
    again = generator_at(3, 7, CPU)
    expected = (
        *tiny.OPEN.draw(6, generator=again),
        torch.randint(100, (6,), generator=again),
        torch.randn(6, 3, 1, 16, 16, generator=again),
    )
    assert all(torch.equal(a, b) for a, b in zip(plain, expected))
    more = tiny.model(masking=IN_PART, context_noise=0.5)
    a, b = (more.draw(6, generator_at(3, 7, CPU)) for _ in range(2))
    assert all(torch.equal(x, y) for x, y in zip(a, plain[:4]))
    assert all(torch.equal(x, y) for x, y in zip(a, b))
    assert (a.frames_seen.shape, a.context_sigma.shape, a.context_eps.shape) == ((6, 3), (6,), (6, 3, 1, 16, 16))


def test_every_seed_step_and_stream_has_numbers_of_its_own():
    keys = [(0, 0, 0), (0, 1, 0), (1, 0, 0), (0, 0, 1), (1, 1, 1)]
    drawn = [torch.rand(4, generator=generator_at(seed, step, CPU, stream)).tolist() for seed, step, stream in keys]
    assert len({tuple(numbers) for numbers in drawn}) == len(keys)


def test_single_frames_are_hidden_with_their_probability_and_levels_are_uniform():
    seen = Masking(frames=0.3).draw_frames(5000, BlockLayout(3, 1, 1), generator=torch.Generator().manual_seed(0))
    assert seen.dtype == torch.bool
    assert (seen.float().mean(0) - 0.7).abs().max() < 0.03
    pairs = (seen[:, 0] & seen[:, 1]).float().mean()
    assert abs(float(pairs) - 0.49) < 0.03  # each frame on its own
    sigma = tiny.model(context_noise=0.5).draw(5000, generator_at(0, 0, CPU)).context_sigma
    assert float(sigma.min()) >= 0
    assert float(sigma.max()) <= 0.5
    assert torch.quantile(sigma, torch.tensor([0.25, 0.5, 0.75])).tolist() == pytest.approx(
        [0.125, 0.25, 0.375], abs=0.02
    )


@pytest.mark.parametrize("wrong", [{"frames": 1.0}, {"frames": -0.1}])
def test_masking_refuses_to_hide_every_frame_of_a_group_that_is_seen(wrong):
    with pytest.raises(McvdError, match="below 1"):
        Masking(**wrong)


@torch.no_grad()
def test_the_loss_sees_the_frames_that_the_draw_says_with_its_noise_and_the_network_is_told():
    model = tiny.model(masking=IN_PART, context_noise=0.5)
    clips = frames(12, 6)
    draw = model.draw(12, generator_at(0, 0, CPU))
    past, current, future = split(clips, LAYOUT)
    noisy = add_noise(torch.cat([past, future], 1), draw.context_eps, 1 - draw.context_sigma.view(-1, 1, 1, 1, 1) ** 2)
    group = torch.stack([draw.past_seen, draw.past_seen, draw.future_seen], 1)
    shown = hide(noisy, group & draw.frames_seen)
    assert 0 < (group & draw.frames_seen).sum() < group.sum() < group.numel()
    by_hand = model.loss_at(
        current, shown[:, :2], shown[:, 2:], draw.t, draw.eps, draw.past_seen, sigma=draw.context_sigma
    )
    torch.testing.assert_close(model.loss(clips, draw), by_hand)
    untold = model.loss_at(current, shown[:, :2], shown[:, 2:], draw.t, draw.eps, draw.past_seen)
    assert ((untold - by_hand).abs() > 1e-3).all()
    torch.testing.assert_close(model.loss(clips[2:5], draw.rows(2, 5)), by_hand[2:5])
    clean = Draw(draw.past_seen, draw.future_seen, draw.t, draw.eps)
    told_nothing = model.loss_at(
        current, hide(past, draw.past_seen), hide(future, draw.future_seen), draw.t, draw.eps, sigma=torch.zeros(12)
    )
    torch.testing.assert_close(model.loss(clips, clean), told_nothing)


# --- a past that is known in part -------------------------------------------------------------------------------------


def test_a_model_trained_so_sees_a_short_context():
    known = [True] * 2 + [False] * 8
    layout = BlockLayout(5, 4, 5)
    blocks = plan(known, layout, IN_PART)
    assert [block.past for block in blocks] == [(None, None, None, 0, 1), (1, 2, 3, 4, 5)]
    assert not any(flag for block in blocks for flag in block.imposed)
    assert any(plan(known, layout, Masking(0.5, 0.5))[0].imposed)  # others have such frames imposed
    long_enough = [True] * 5 + [False] * 9 + [True] * 5
    assert plan(long_enough, layout, IN_PART) == plan(long_enough, layout, Masking(0.5, 0.5))
    model = tiny.model(masking=IN_PART, layout=BlockLayout(4, 3, 2))
    assert model.predict(tiny.video(1, 1, 16, 16), 5, **FAST).shape == (1, 5, 1, 16, 16)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.booleans(), min_size=1, max_size=25),
    st.builds(BlockLayout, st.integers(0, 5), st.integers(1, 5), st.integers(0, 4)),
    st.sampled_from([IN_PART, Masking(0.5, frames=0.2), Masking(0.5, 0.5, together=True, frames=0.2)]),
)
def test_plans_in_part_read_only_known_frames_next_to_the_block(known, layout, masking):
    try:
        blocks = plan(known, layout, masking)
    except McvdError:
        assert not masking.allows(False, False)
        return
    now = list(known)
    for block in blocks:
        start, stop = block.current[0], block.current[-1] + 1
        past, future = ([i for i in group if i is not None] for group in (block.past, block.future))
        assert past == list(range(start - len(past), start))
        assert future == list(range(stop, stop + len(future)))
        assert all(0 <= i < len(now) and now[i] for i in past + future)
        assert (block.past_seen, block.future_seen) in masking.combinations(layout) or layout.current == 1
        for i, makes in zip(block.current, block.made):
            assert not (makes and now[i])
            if makes:
                now[i] = True
    assert all(now)
    slow, again = _Planner(known, layout, masking, layout.current), []
    while windows := [found for s in range(1 - layout.current, len(known)) if (found := slow.window(s))]:
        again.append(min(windows, key=lambda found: found[0])[1])
        for i, makes in zip(again[-1].current, again[-1].made):
            if makes:
                slow.have[i] = True
    assert tuple(again) == blocks


# --- noise on known frames --------------------------------------------------------------------------------------------


def test_only_a_model_that_is_told_the_noise_has_weights_for_it():
    torch.manual_seed(0)
    plain = VideoDiffusion(tiny.config()).state_dict()
    torch.manual_seed(0)
    told = VideoDiffusion(tiny.config(context_noise=0.3)).state_dict()
    assert {name.split(".")[1] for name in told.keys() - plain.keys()} == {"sigma"}
    assert all(torch.equal(told[name], plain[name]) for name in plain)


@torch.no_grad()
def test_a_new_model_that_is_told_begins_as_one_that_is_not():
    torch.manual_seed(0)
    model = VideoDiffusion(tiny.config(context_noise=0.3)).eval()
    for parameter in (model.network.conv_out.weight, *(p for n, p in model.network.named_parameters() if "conv1" in n)):
        parameter.normal_(std=0.2)
    x, past, future = frames(2, 3), frames(2, 2), frames(2, 1)
    outputs = [
        model.network(x, torch.tensor([7, 50]), model.network.encode(past, future, None, sigma))
        for sigma in (None, torch.tensor([0.3, 0.1]))
    ]
    torch.testing.assert_close(*outputs, rtol=0, atol=1e-4)
    assert outputs[0].abs().max() > 0.1


@torch.no_grad()
def test_the_network_is_told_the_noise_in_units_that_sinusoids_tell_apart():
    network = tiny.model(context_noise=0.5).network
    given, past, future = [], frames(2, 2), frames(2, 1)
    network.sigma.register_forward_pre_hook(lambda _, inputs: given.extend(inputs))
    network(frames(2, 3), torch.tensor([7]), network.encode(past, future, None, torch.tensor([0.5, 0.001])))
    assert torch.equal(given[0], time_embedding(torch.tensor([500, 1]), network.time_width))


def test_noise_on_made_frames_changes_later_blocks_alone_and_follows_the_seed():
    model = tiny.model(context_noise=0.5)
    past = tiny.video(2, 2, 1, 16, 16)
    plain, noisy, again = (model.predict(past, 8, samples=2, context_noise=n, **FAST) for n in (0.0, 0.4, 0.4))
    assert torch.equal(noisy, again)
    assert torch.equal(noisy[:, :3], plain[:, :3])  # given frames get none
    assert all(float((noisy - plain)[i, 3:].abs().max()) > 1e-3 for i in range(4))
    one_by_one = model.predict(past, 8, samples=2, context_noise=0.4, batch_size=1, **FAST)
    torch.testing.assert_close(one_by_one, noisy, rtol=0, atol=1e-4)
    assert not torch.equal(model.predict(past, 8, samples=2, context_noise=0.4, seed=1, **FAST), noisy)
    assert torch.equal(model.predict(past, 3, context_noise=0.4, **FAST), model.predict(past, 3, **FAST))


def test_hidden_frames_get_no_noise_and_the_network_is_told_its_level(monkeypatch):
    model, seen = tiny.model(context_noise=0.5), []
    encode = model.network.encode

    def record(past, future, past_seen, sigma, *others):
        seen.append((past.clone(), future.clone(), sigma.tolist()))
        return encode(past, future, past_seen, sigma, *others)

    monkeypatch.setattr(model.network, "encode", record)
    model.predict(tiny.video(2, 1, 16, 16), 6, context_noise=0.25, **FAST)
    assert [sigma for _, _, sigma in seen] == [[0.0], [0.25]]
    assert not any(future.any() for _, future, _ in seen)
    assert float(seen[1][0].abs().max()) > 1.05  # made frames lie in [-1, 1]: this is noise


def test_noise_on_made_frames_has_the_standard_deviation_that_is_asked_for(monkeypatch):
    model, pasts, make = tiny.model(context_noise=0.9), [], VideoDiffusion.denoiser
    monkeypatch.setattr(mcvd.rollout, "sample", lambda denoise, table, x, *_, **__: torch.ones_like(x))
    monkeypatch.setattr(model, "denoiser", lambda past, *rest: pasts.append(past) or make(model, past, *rest))
    model.predict(tiny.video(2, 1, 16, 16), 6, samples=32, context_noise=0.6, **FAST)
    assert pasts[1].std().item() == pytest.approx(0.6, rel=0.03)
    assert pasts[1].mean().item() == pytest.approx(0.8, rel=0.03)  # sqrt(1 - 0.6^2) of what was made


def test_noise_that_the_model_was_not_trained_with_is_refused():
    with pytest.raises(McvdError, match="trained with 0 to 0$"):
        tiny.model().predict(tiny.video(2, 1, 16, 16), 3, context_noise=0.1, **FAST)
    with pytest.raises(McvdError, match=r"trained with 0 to 0\.5"):
        tiny.model(context_noise=0.5).predict(tiny.video(2, 1, 16, 16), 3, context_noise=0.6, **FAST)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"context_noise": 1.0}, "below 1"),
        ({"context_noise": 0.5, "noisy_condition": True}, "noise of its own"),
        ({"context_noise": 0.5, "layout": BlockLayout(0, 3)}, "this layout has none"),
        ({"context_noise": 0.5, "time_embedding": False}, "needs time_embedding"),
    ],
)
def test_noise_that_cannot_work_is_refused(options, says):
    with pytest.raises(McvdError, match=says):
        VideoDiffusion(tiny.config(**options))


def test_both_options_survive_saving(tmp_path):
    model = tiny.model(masking=IN_PART, context_noise=0.5)
    again = VideoDiffusion.from_folder(model.save(tmp_path / "model"))
    assert again.config == model.config
    a, b = (m.predict(tiny.video(1, 1, 16, 16), 6, context_noise=0.2, **FAST) for m in (model, again))
    assert torch.equal(a, b)

"""Running a plan: what is known stays, seeds decide everything, conditions are encoded once."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import mcvd.rollout
import tiny
from mcvd.diffusion.solvers import SOLVERS, solver_table
from mcvd.errors import McvdError
from mcvd.layout import BlockLayout, Masking
from mcvd.planner import plan
from mcvd.rollout import SeededNoise, rollout

FAST = {"solver": "ddpm", "steps": 3}
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def model():
    return tiny.model()


def close(a, b):
    # float32 sums of a convolution may come in another order for another batch size
    torch.testing.assert_close(a, b, rtol=0, atol=1e-5)


# --- known frames -----------------------------------------------------------------------------------------------------


@settings(max_examples=15, deadline=None)
@given(st.lists(st.booleans(), min_size=1, max_size=9), st.booleans())
def test_known_frames_come_back_bit_for_bit(known, as_float):
    model, video = tiny.model(), tiny.video(2, len(known), 1, 16, 16)
    given_frames = torch.rand(video.shape) if as_float else video
    expected = given_frames if as_float else video.float() / 255
    out = model.fill(given_frames, known, samples=2, solver="ddim", steps=2)
    assert out.shape == (4, len(known), 1, 16, 16)
    assert torch.isfinite(out).all()
    flags = torch.tensor(known)
    assert torch.equal(out[:, flags], expected.repeat_interleave(2, 0)[:, flags])


def test_what_stands_in_place_of_unknown_frames_does_not_matter(model):
    known = [True, True, False, False, False, False, False]
    a, b = tiny.video(7, 1, 16, 16), tiny.video(7, 1, 16, 16, seed=1)
    b[:2] = a[:2]
    assert torch.equal(model.fill(a, known, **FAST), model.fill(b, known, **FAST))


def test_known_frames_matter(model):
    outs = [model.predict(tiny.video(2, 1, 16, 16, seed=seed), 3, **FAST) for seed in (0, 1)]
    assert (outs[0] - outs[1]).abs().max() > 0.01


def test_later_blocks_read_what_earlier_ones_made(model, monkeypatch):
    past, conditions, make = tiny.video(2, 1, 16, 16), [], model.denoiser
    monkeypatch.setattr(model, "denoiser", lambda past, *rest: conditions.append(past.clone()) or make(past, *rest))
    out = model.predict(past, 6, **FAST)
    close(conditions[0][0], past.float() / 127.5 - 1)
    close(conditions[1][0], out[0, 1:3] * 2 - 1)


def test_later_blocks_read_the_colours_of_a_video(model, monkeypatch):
    """The published code also feeds back what lies beyond."""
    made = lambda denoise, table, x, *rest, **options: torch.full_like(x, 1.5)  # noqa: E731
    monkeypatch.setattr(mcvd.rollout, "sample", made)
    read, make = [], model.denoiser
    monkeypatch.setattr(model, "denoiser", lambda past, *rest: read.append(float(past.max())) or make(past, *rest))
    outs = [model.predict(tiny.video(2, 1, 16, 16), 6, reference=reference) for reference in (False, True)]
    assert read[1::2] == [1.0, 1.5]
    assert all(float(out.max()) == 1 for out in outs)


@pytest.mark.parametrize("solver", SOLVERS)
def test_imposed_frames_end_at_their_known_values(monkeypatch, solver):
    """Frames inside a block that are known already: the block's own states must end at them, whatever the network."""
    model = tiny.model(layout=BlockLayout(2, 3, 2))
    video, known = tiny.video(1, 3, 1, 16, 16).float() / 255, [False, True, False]
    (block,) = plan(known, model.layout, model.config.masking)
    at = block.current.index(1)
    assert block.imposed[at]
    ends, run = [], mcvd.rollout.sample  # the states after the last step
    monkeypatch.setattr(mcvd.rollout, "sample", lambda *a, **k: ends.append(run(*a, **k)) or ends[-1])
    out = rollout(model, video, known, [block], solver_table(solver, model.config.schedule, 5), samples=3)
    # F-PNDM reaches the clean end by way of eps, with some rounding; the others end at x0 itself
    tolerance = 1e-4 if solver == "f-pndm" else 1e-6
    torch.testing.assert_close(ends[0][:, at], (video[0, 1] * 2 - 1).expand(3, -1, -1, -1), rtol=0, atol=tolerance)
    assert torch.equal(out[:, 1], video[:, 1].expand(3, -1, -1, -1))
    assert not torch.equal(out[0, 0], out[1, 0])


# --- seeds ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("solver", SOLVERS)
def test_the_split_into_batches_changes_nothing(model, solver):
    past = tiny.video(3, 2, 1, 16, 16)
    options = {"frames": 5, "samples": 2, "solver": solver, "steps": 4, "seed": 5}
    whole = model.predict(past, **options)
    for batch_size in (1, 4):
        close(model.predict(past, batch_size=batch_size, **options), whole)


def test_the_samples_of_a_clip_stand_one_after_another(model):
    past = tiny.video(2, 2, 1, 16, 16)
    both = model.predict(past, 3, samples=3, **FAST)
    # sample j of clip i is row i * samples + j, and the same trajectory however many samples are asked for
    for samples in (1, 2):
        fewer = model.predict(past, 3, samples=samples, **FAST)
        for clip in range(2):
            close(fewer[clip * samples : (clip + 1) * samples], both[clip * 3 : clip * 3 + samples])


def test_a_trajectory_is_keyed_by_the_place_of_its_clip(model):
    """Clip 0 alone is clip 0 of a batch. A clip that stood at another place has another trajectory: otherwise equal
    clips in a batch would all get the same one."""
    past = tiny.video(2, 2, 1, 16, 16)
    batch = model.predict(past, 3, **FAST)
    close(model.predict(past[:1], 3, **FAST), batch[:1])
    assert (model.predict(past[1:], 3, **FAST) - batch[1:]).abs().max() > 0.01
    twins = model.predict(past[:1].expand(2, -1, -1, -1, -1), 3, **FAST)
    assert (twins[0] - twins[1]).abs().max() > 0.01


def test_seeds_and_samples_differ_and_repeat(model):
    past = tiny.video(2, 1, 16, 16)
    out = model.predict(past, 3, samples=2, seed=1, **FAST)
    assert torch.equal(model.predict(past, 3, samples=2, seed=1, **FAST), out)
    assert (out[0] - out[1]).abs().max() > 0.01
    assert (model.predict(past, 3, samples=2, seed=2, **FAST) - out).abs().max() > 0.01


def test_the_global_generator_is_neither_read_nor_moved(model):
    past = tiny.video(2, 1, 16, 16)
    outs = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        state = torch.get_rng_state()
        outs.append(model.predict(past, 3, **FAST))
        assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(*outs)


def test_seeded_noise_is_standard_normal_and_independent():
    source = SeededNoise(3, CPU)
    keys = [(clip, sample) for clip in range(8) for sample in range(8)]
    noise = torch.stack([source(keys, (2, 1, 16, 16)) for _ in range(2)], 1).flatten(1)
    assert noise.mean().abs() < 0.01
    assert noise.std().item() == pytest.approx(1, abs=0.01)
    correlation = noise @ noise.T / noise.shape[1]
    assert (correlation - torch.eye(64)).abs().max() < 0.3
    assert correlation.fill_diagonal_(0).abs().max() < 6 / noise.shape[1] ** 0.5


# --- noisy conditions -------------------------------------------------------------------------------------------------


def test_noisy_conditions_follow_the_seed_and_not_the_batch():
    model = tiny.model(noisy_condition=True)
    past = tiny.video(3, 2, 1, 16, 16)
    options = {"frames": 4, "samples": 2, **FAST}
    torch.manual_seed(0)
    out = model.predict(past, **options)
    torch.manual_seed(1)
    for batch_size in (1, 4, 32):
        close(model.predict(past, batch_size=batch_size, **options), out)
    plain = tiny.model()
    plain.load_state_dict(model.state_dict())
    assert (plain.predict(past, **options) - out).abs().max() > 0.01


def test_noisy_conditions_have_the_noise_of_the_level_that_the_network_is_told(monkeypatch):
    """The published last call tells of a noisy level about frames that are clean; its condition is as noisy."""
    model, variances = tiny.model(noisy_condition=True), []
    encode = model.network.encode
    monkeypatch.setattr(model.network, "encode", lambda p, *rest: variances.append(p.var()) or encode(p, *rest))
    grey = torch.full((2, 1, 16, 16), 0.5)  # 0 in the network's range: what the network sees is the noise alone
    model.predict(grey, 3, samples=16, steps=10, reference=True)
    told = model.config.schedule.alpha_bar[[*range(99, -1, -10), 100 - 10]]
    torch.testing.assert_close(torch.stack(variances[1:]).double(), 1 - told, rtol=0.1, atol=0)


# --- work that is done once -------------------------------------------------------------------------------------------


def count_encodings(model, monkeypatch):
    encoded = []
    encode = model.network.encode
    monkeypatch.setattr(model.network, "encode", lambda past, *rest: encoded.append(len(past)) or encode(past, *rest))
    return encoded


def test_a_condition_of_given_frames_is_encoded_once_a_clip(model, monkeypatch):
    encoded = count_encodings(model, monkeypatch)
    model.predict(tiny.video(2, 2, 1, 16, 16), 6, samples=4, **FAST)
    # the first block sees given frames only: one condition for each of 2 clips; the second sees what 8 samples made
    assert encoded == [2, 8]


def test_conditions_go_to_their_own_clips_however_batches_cut_them(model, monkeypatch):
    encoded = count_encodings(model, monkeypatch)
    past = tiny.video(3, 2, 1, 16, 16)
    out = model.predict(past, 3, samples=3, batch_size=4, **FAST)
    assert encoded == [2, 2, 1]  # clips 0 and 1; 1 and 2; 2
    alone = model.predict(past[:1], 3, samples=3, **FAST)
    close(out[:3], alone)


def test_noise_is_asked_for_once_a_step():
    model = tiny.model()
    asked = []

    def noise(trajectories, shape):
        asked.append((len(trajectories), shape))
        return torch.zeros(len(trajectories), *shape)

    known = [True, True, False, False, False]
    blocks = plan(known, model.layout, model.config.masking)
    table = solver_table("ddpm", model.config.schedule, 4)
    rollout(model, torch.rand(2, 5, 1, 16, 16), known, blocks, table, samples=2, noise=noise)
    assert asked == [(4, (3, 1, 16, 16))] * 4  # the start, and every step but the last


def test_progress_counts_every_call(model):
    seen = []
    model.predict(tiny.video(2, 2, 1, 16, 16), 6, samples=2, batch_size=3, progress=lambda *s: seen.append(s), **FAST)
    total = 2 * 2 * 3  # batches, blocks, steps
    assert seen == [(i + 1, total) for i in range(total)]


# --- guidance ---------------------------------------------------------------------------------------------------------


def test_guidance_1_is_the_model_itself_and_others_are_not(model):
    past = tiny.video(2, 2, 1, 16, 16)
    plain = model.predict(past, 3, **FAST)
    assert torch.equal(model.predict(past, 3, guidance=1.0, **FAST), plain)
    assert (model.predict(past, 3, guidance=2.0, **FAST) - plain).abs().max() > 1e-3


@pytest.mark.parametrize("told", [{}, {"mask_embedding": True}, {"context_noise": 0.5}], ids=str)
def test_guidance_0_is_the_model_without_its_condition(told):
    """guidance interpolates between nothing seen (0) and the model (1), and goes on beyond.

    told: what the network is told about what it sees, beside the frames.
    """
    model = tiny.model(**told)
    past = tiny.video(2, 1, 16, 16)
    x, t, a = torch.randn(1, 3, 1, 16, 16), 50, float(model.config.schedule.alpha_bar[50])
    frames = (past.float() / 127.5 - 1)[None]
    future, rows = torch.zeros(1, 1, 1, 16, 16), torch.zeros(1, dtype=torch.long)
    with torch.no_grad():

        def x0(guidance, seen=True):
            known = frames if seen else torch.zeros_like(frames)
            sigma = 0.3 if seen else 0.0
            return model.denoiser(known, future, torch.tensor([seen]), rows, guidance, sigma=sigma)(x, t, a)

        nothing, plain, doubled = x0(1.0, seen=False), x0(1.0), x0(2.0)
        close(x0(0.0), nothing)
        torch.testing.assert_close(doubled, 2 * plain - nothing, rtol=1e-4, atol=1e-4)


def test_guidance_without_anything_seen_changes_nothing(model):
    close(model.generate(3, guidance=4.0, **FAST), model.generate(3, **FAST))


# --- every kind of network --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "network",
    [
        {"conditioning": "spatin", "spatin_width": 8},
        {"mask_embedding": True},
        {"channels": 3},
        {"layout": BlockLayout(1, 1, 1)},
        {"layout": BlockLayout(2, 3, 0)},
        {"layout": BlockLayout(0, 3, 2)},
        {"layout": BlockLayout(0, 3, 0)},
        {"size": (16, 8)},
        {"frames": "3d"},
        {"frames": "pseudo3d", "attention": (8,)},
    ],
    ids=str,
)
def test_every_network_fills_in(network):
    model = tiny.model(**network)
    video = tiny.video(2, 8, model.channels, *model.size)
    known = [False] * 8 if not model.layout.condition_frames else [i in (0, 1, 6, 7) for i in range(8)]
    out = model.fill(video, known, samples=2, batch_size=3, **FAST)
    assert out.shape == (4, 8, model.channels, *model.size)
    assert torch.isfinite(out).all()
    close(out, model.fill(video, known, samples=2, **FAST))
    # and learns: with a parameter that gets no gradient, training on several processes would stop with an error
    clips = torch.rand(2, model.layout.frames, model.channels, *model.size) * 2 - 1
    model.loss(clips, model.draw(2, torch.Generator().manual_seed(0))).sum().backward()
    assert [name for name, weight in model.named_parameters() if weight.grad is None] == []


def test_the_reference_mode_tells_of_no_hidden_past(monkeypatch):
    """The published samplers drop the mask of `cond_emb`, also where they generate."""
    model, told = tiny.model(mask_embedding=True), []
    encode = model.network.encode
    monkeypatch.setattr(
        model.network, "encode", lambda p, f, seen, *rest: told.append(seen) or encode(p, f, seen, *rest)
    )
    outs = [model.generate(3, solver="ddpm", steps=3, reference=reference) for reference in (False, True)]
    assert [bool(seen) for seen in told] == [False, True]
    assert not torch.equal(*outs)


def test_a_network_without_past_frames_is_told_what_training_told_it():
    """The published code has one mask embedding, that of a seen past, wherever there is no past to hide."""
    model = tiny.model(mask_embedding=True, layout=BlockLayout(0, 3, 1), masking=Masking(0.0, 0.5))
    with torch.no_grad():
        model.network.mask.weight[0] = torch.nan  # that of a hidden one, which training never touched
    model.predict(tiny.video(2, 1, 16, 16), 3, backward=True, steps=2, guidance=2)
    model.generate(5, steps=2)


def test_the_reference_mode_makes_the_published_extra_call(model):
    past, calls = tiny.video(2, 1, 16, 16), []
    out = model.predict(past, 3, solver="ddim", steps=10, reference=True, progress=lambda *s: calls.append(s))
    assert len(calls) == 11
    assert not torch.equal(out, model.predict(past, 3, solver="ddim", steps=10))


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("prediction", ["eps", "x0", "v"])
def test_a_model_that_makes_no_numbers_is_an_error_and_no_black_video(prediction, value):
    model = tiny.model(prediction=prediction)
    with torch.no_grad():
        model.network.conv_out.bias.fill_(value)
    with pytest.raises(McvdError, match="non-finite values: its weights are damaged"):
        model.predict(tiny.video(2, 1, 16, 16), 3, steps=2)

"""Properties of the network that need no published numbers."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from mcvd.errors import McvdError
from mcvd.layout import BlockLayout
from mcvd.networks.attention import Attention
from mcvd.networks.blocks import Spatin
from mcvd.networks.config import UNetConfig
from mcvd.networks.frames import ChannelFrames
from mcvd.networks.frames3d import AxisFrames, MergeFrames, PseudoConv3d, SpaceTimeAttention, Spatin3d
from mcvd.networks.unet import UNet

SMALL = {"size": (16, 16), "width": 8, "multipliers": (1, 2), "blocks": 1, "attention": (8,), "head_channels": 8}
KINDS = [(conditioning, frames) for conditioning in ("concat", "spatin") for frames in ("channels", "3d", "pseudo3d")]
every_kind = pytest.mark.parametrize(("conditioning", "frames"), KINDS)


def make(seed=0, **options):
    """A small network whose layers all speak (a fresh one starts almost silent)."""
    torch.manual_seed(seed)
    network = UNet(UNetConfig(**SMALL | options)).eval()
    for p in network.parameters():
        nn.init.normal_(p, std=0.1) if p.dim() < 2 else nn.init.normal_(p, std=p[0].numel() ** -0.5)
    return network


def inputs(network, batch=2):
    c = network.config
    past, x, future = (
        torch.randn(batch, n, c.channels, *c.size) for n in (c.layout.past, c.layout.current, c.layout.future)
    )
    return x, torch.randint(1000, (batch,)), past, future


def output(network, x, time, past, future, seen=None):
    with torch.inference_mode():
        return network(x, time, network.encode(past, future, seen))


@every_kind
@pytest.mark.parametrize("layout", [(2, 3, 1), (1, 1, 0), (0, 2, 2), (0, 2, 0)])
def test_shapes(conditioning, frames, layout):
    layout = BlockLayout(*layout)
    for size, channels in (((16, 16), 1), ((16, 32), 3)):
        options = {"conditioning": conditioning, "frames": frames, "layout": layout, "size": size, "channels": channels}
        if conditioning == "spatin" and not layout.condition_frames:
            with pytest.raises(McvdError, match="concat"):
                make(**options)
            continue
        network = make(**options)
        x, *rest = inputs(network)
        assert output(network, x, *rest).shape == x.shape


@every_kind
def test_every_input_and_weight_matters(conditioning, frames):
    network = make(conditioning=conditioning, frames=frames, layout=BlockLayout(2, 2, 1), mask_embedding=True)
    x, time, past, future = inputs(network)
    for frame in (x, past, future):
        frame.requires_grad_()
    network(x, time, network.encode(past, future, torch.tensor([0, 1]))).square().sum().backward()
    for name, p in network.named_parameters():
        assert p.grad is not None, name
        assert p.grad.abs().max() > 0, name
    for frame in (x, past, future):
        assert (frame.grad.abs().amax((0, 2, 3, 4)) > 0).all()
    still = output(network, x, time, past, future)
    assert not torch.equal(output(network, x, time + 1, past, future), still)
    assert torch.equal(output(network, x, time, past, future, torch.ones(2, dtype=torch.bool)), still)
    assert not torch.equal(output(network, x, time, past, future, torch.zeros(2, dtype=torch.bool)), still)


@every_kind
def test_a_fresh_network_is_almost_silent(conditioning, frames):
    torch.manual_seed(0)
    network = UNet(UNetConfig(**SMALL, conditioning=conditioning, frames=frames, layout=BlockLayout(2, 3, 1)))
    assert output(network, *inputs(network)).abs().max() < 1e-3


def test_initial_weights_are_uniform_in_the_published_ranges():
    """U(-b, b), b = sqrt(3 scale / mean fan): all but 0 at the end of every branch, small for queries, keys, values."""
    torch.manual_seed(0)
    network = UNet(UNetConfig(**SMALL | {"width": 32}, layout=BlockLayout(2, 3, 1)))
    block, attention, _ = network.middle
    for layer, fan, scale in (
        (network.time[0], (32 + 128) / 2, 1),
        (network.down[0].resample.shortcut, 32, 1),
        (block.conv0, 9 * 64, 1),
        (block.norm0.modulation, (128 + 2 * 64) / 2, 1),
        (block.conv1, 9 * 64, 1e-10),
        (attention.qkv, 64, 0.1),
        (attention.out, 64, 1e-10),
        (network.conv_out, 9 * (32 + 3) / 2, 1e-10),
    ):
        bound = (3 * scale / fan) ** 0.5
        assert layer.weight.abs().max().item() == pytest.approx(bound, rel=0.02)
        assert layer.weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.05)
        assert not layer.bias.any()


@every_kind
def test_rows_are_independent_and_conditions_can_be_shared(conditioning, frames):
    """One condition, encoded once, serves several trajectories."""
    network = make(conditioning=conditioning, frames=frames, layout=BlockLayout(2, 2, 1), mask_embedding=True)
    x, time, past, future = inputs(network, batch=3)
    rows, seen = torch.tensor([1, 0, 1]), torch.tensor([True, False])
    with torch.inference_mode():
        shared = network(x, time, network.encode(past[:2], future[:2], seen).take(rows))
    for i, row in enumerate(rows):
        one = slice(i, i + 1)
        alone = output(network, x[one], time[one], past[row][None], future[row][None], seen[row][None])
        torch.testing.assert_close(shared[one], alone, rtol=1e-4, atol=1e-5)


@every_kind
def test_without_time(conditioning, frames):
    network = make(conditioning=conditioning, frames=frames, layout=BlockLayout(2, 2), time_embedding=False)
    x, time, past, future = inputs(network)
    assert torch.equal(output(network, x, time, past, future), output(network, x, time + 1, past, future))


def test_bad_options():
    for options, word in (
        ({"conditioning": "spade"}, "spatin"),
        ({"frames": "4d"}, "pseudo3d"),
        ({"size": (15, 16)}, "15x16"),
        ({"head_channels": 5}, "head_channels 5"),
        ({"patch": 2, "frames": "3d"}, "patch is 2; with frames '3d'"),
        ({"dropout": 1.0}, "dropout is 1.0"),
        ({"mask_embedding": True, "time_embedding": False}, "time_embedding"),
    ):
        with pytest.raises(McvdError, match=word):
            make(**options)


# --- parts ---------------------------------------------------------------------------------------------------------


def test_concat_condition_is_one_convolution_over_all_frames():
    network = make(layout=BlockLayout(2, 3, 1))
    x, _, past, future = inputs(network)
    together = network.conv_in(torch.cat([x, past, future], dim=1).flatten(1, 2))
    share = network.encode(past, future).share
    torch.testing.assert_close(network.ops.first(network.conv_in, x.flatten(1, 2), share), together)


@pytest.mark.parametrize("conditioning", ["concat", "spatin"])
def test_patches_are_channels_of_the_inner_network(conditioning):
    layout = BlockLayout(2, 3, 1)
    network = make(conditioning=conditioning, layout=layout, size=(32, 32), patch=2, channels=3)
    x, time, past, future = inputs(network)
    out = output(network, x, time, past, future)
    assert out.shape == x.shape
    # the same weights on four times the channels, which are the pixels of a patch, row by row
    inner = make(conditioning=conditioning, layout=layout, channels=12)
    inner.load_state_dict(network.state_dict())

    def unshuffled(frames):
        b, n, c, h, w = frames.shape
        return frames.reshape(b, n, c, h // 2, 2, w // 2, 2).permute(0, 1, 2, 4, 6, 3, 5).reshape(b, n, 4 * c, 16, 16)

    there = output(inner, unshuffled(x), time, unshuffled(past), unshuffled(future))
    assert torch.allclose(unshuffled(out), there, atol=1e-5)


def test_attention_is_at_the_resolutions_inside_the_patches():
    plain, patched = make(attention=(8, 16)), make(attention=(8, 16), patch=2, size=(32, 32))
    assert [len(level.attention) for level in patched.down] == [len(level.attention) for level in plain.down] == [1, 1]
    assert [len(level.attention) for level in make(attention=(16,), size=(16, 32)).down] == [1, 0]  # the shorter side


def test_spatin_is_a_group_norm_with_maps_from_the_resized_condition():
    torch.manual_seed(0)
    ops = ChannelFrames(UNetConfig())
    norm = Spatin(8, 2, 6, scale=4, ops=ops)
    seen, x = torch.randn(2, 2, 16, 16), torch.randn(2, 8, 4, 4)
    hidden = F.silu(norm.shared(F.interpolate(seen, size=(4, 4), mode="nearest")))
    gain, beta = norm.maps(seen)
    torch.testing.assert_close(gain, 1 + norm.gamma(hidden))
    torch.testing.assert_close(beta, norm.beta(hidden))
    network = make(conditioning="spatin", layout=BlockLayout(2, 1))
    norm.slot, condition = 0, network.encode(torch.zeros(2, 2, 1, 16, 16), torch.zeros(2, 0, 1, 16, 16))
    condition.maps[0] = (gain, beta)
    expected = F.group_norm(x, 2, eps=1e-6) * gain + beta
    torch.testing.assert_close(norm(x, condition), expected)


def test_attention_heads_are_runs_of_channels():
    torch.manual_seed(0)
    layer, x = Attention(16, heads=2), torch.randn(2, 16, 3, 4)
    nn.init.normal_(layer.out.weight, std=0.2)
    h = F.group_norm(x, 4, eps=1e-6).flatten(2)
    q, k, v = torch.einsum("oc,bcn->bon", layer.qkv.weight, h).chunk(3, dim=1)
    heads = []
    for i in (0, 8):
        scores = torch.einsum("bcq,bck->bqk", q[:, i : i + 8], k[:, i : i + 8]) / 8**0.5
        heads.append(torch.einsum("bqk,bck->bcq", scores.softmax(2), v[:, i : i + 8]))
    out = torch.einsum("oc,bcn->bon", layer.out.weight, torch.cat(heads, 1)).view_as(x)
    torch.testing.assert_close(layer(x), (x + out) / 2**0.5, rtol=1e-4, atol=1e-5)


# --- frames along an axis of their own (3-D) -------------------------------------------------------------------------


def test_pseudo_convolution_is_space_then_time():
    torch.manual_seed(0)
    layer, x = PseudoConv3d(3, 5, 3), torch.randn(2, 3, 4, 6, 7)
    space = F.silu(F.conv3d(x, layer.space.weight.unsqueeze(2), layer.space.bias, padding=(0, 1, 1)))
    both = F.conv3d(space, layer.time.weight[..., None, None], layer.time.bias, padding=(1, 0, 0))
    torch.testing.assert_close(layer(x), both, rtol=1e-4, atol=1e-5)


def test_space_time_attention_is_per_frame_then_per_pixel():
    torch.manual_seed(0)
    layer, x = SpaceTimeAttention(8, 2), torch.randn(2, 8, 3, 4, 5)
    for part in (layer.space, layer.time):
        nn.init.normal_(part.out.weight, std=0.3)
    space = torch.stack([layer.space(x[:, :, i]) for i in range(3)], dim=2)
    both = torch.stack([torch.stack([layer.time(space[..., i, j]) for j in range(5)], -1) for i in range(4)], -2)
    torch.testing.assert_close(layer(x), both, rtol=1e-4, atol=1e-5)


def test_merging_frames_is_one_matrix():
    torch.manual_seed(0)
    layer, x = MergeFrames(5, 2, 1), torch.randn(2, 3, 5, 4, 4)
    expected = torch.einsum("mn,bcnhw->bcmhw", layer.weight[..., 0, 0], x) + layer.bias.view(2, 1, 1)
    torch.testing.assert_close(layer(x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("frames", ["3d", "pseudo3d"])
def test_spatin_3d_mixes_frames_for_each_colour_alike(frames):
    torch.manual_seed(0)
    config = UNetConfig(channels=3, layout=BlockLayout(3, 2, 1), conditioning="spatin", frames=frames)
    norm = AxisFrames(config).spatin(8, 1)
    assert isinstance(norm, Spatin3d)
    assert norm.shared(torch.zeros(1, 3, 2, 4, 4)).shape[1] == 128 // 2
    seen = torch.randn(2, 4, 3, 16, 16)  # frames, colours
    conv = norm.converter
    mixes = [conv] if frames == "3d" else [conv.space, conv.time]
    mixed = seen
    for i, mix in enumerate(mixes):
        mixed = F.silu(mixed) if i else mixed
        matrix = mix.weight.flatten(1)
        mixed = torch.einsum("mn,bnchw->bmchw", matrix, mixed) + mix.bias.view(-1, 1, 1, 1)
    ours = norm.maps(seen.transpose(1, 2))
    expected = Spatin.maps(norm, mixed.transpose(1, 2))
    for a, b in zip(ours, expected):
        assert a.shape == (2, 8, 2, 8, 8)
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_concat_3d_sees_current_past_and_future_in_this_order():
    network = make(frames="3d", layout=BlockLayout(2, 3, 1), channels=3)
    x, _, past, future = inputs(network)
    share = network.encode(past, future).share
    ours = network.ops.first(network.conv_in, network.ops.fold(x), share)
    torch.testing.assert_close(ours, network.conv_in(torch.cat([x, past, future], dim=1).transpose(1, 2)))

"""The fast forms of the network's parts equal the plain formulas, in value, gradient and what they keep."""

import importlib.util
from functools import partial

import pytest
import torch
import torch.nn.functional as F

import tiny
from mcvd.networks import memory, unet, winograd
from mcvd.networks.convolution import Conv2d, packed_convolutions
from mcvd.networks.dropout import dropout
from mcvd.networks.memory import free_memory
from mcvd.networks.norm import norm_silu
from mcvd.networks.resample import downsample, upsample


def plain(x, groups, eps, scale=None, shift=None, maps=None):
    y = F.group_norm(x, groups, eps=eps)
    if maps is not None:
        y = y * maps[0] + maps[1]
    if scale is not None:
        wide = (*scale.shape, *[1] * (x.dim() - 2))
        y = y * scale.view(wide) + shift.view(wide)
    return F.silu(y)


def arguments(rows, spatin, shape=(3, 8, 4, 5), dtype=torch.float64, rows_of_maps=3):
    """x far from mean 0, scale and shift with `rows` rows (0: none), the maps of SPATIN or none."""
    torch.manual_seed(0)
    make = lambda *size: torch.randn(*size, dtype=dtype).requires_grad_()  # noqa: E731
    x = (3 + 2 * torch.randn(*shape, dtype=dtype)).requires_grad_()
    modulation = (make(rows, shape[1]), make(rows, shape[1])) if rows else (None, None)
    maps = tuple(make(rows_of_maps, *shape[1:]) for _ in range(2)) if spatin else None
    return x, modulation, maps


every_modulation = pytest.mark.parametrize(
    ("rows", "spatin"), [(0, False), (1, False), (3, False), (0, True), (3, True)]
)


@every_modulation
def test_norm_silu_has_the_right_gradient(rows, spatin):
    x, (scale, shift), maps = arguments(rows, spatin)
    leaves = [v for v in (x, scale, shift, *(maps or ())) if v is not None]

    def call(*_):
        return norm_silu(x, 2, 1e-5, scale, shift, maps)

    assert torch.autograd.gradcheck(call, leaves)


@every_modulation
@pytest.mark.parametrize("shape", [(3, 8, 4, 5), (3, 8, 2, 4, 5)])
@pytest.mark.parametrize("channels_last", [False, True])
def test_norm_silu_equals_the_plain_formula(rows, spatin, shape, channels_last):
    x, (scale, shift), maps = arguments(rows, spatin, shape, torch.float32)
    if channels_last:  # or, with a frame axis, any layout
        x = x.detach().transpose(1, -1).contiguous().transpose(1, -1).requires_grad_()
    leaves = [v for v in (x, scale, shift, *(maps or ())) if v is not None]
    results = []
    for function in (plain, norm_silu):
        y = function(x, 2, 1e-5, scale, shift, maps)
        results.append([y, *torch.autograd.grad((y * torch.linspace(-1, 2, y.numel()).view(y.shape)).sum(), leaves)])
    with torch.no_grad():
        results.append([norm_silu(x, 2, 1e-5, scale, shift, maps), *results[0][1:]])
    for ours in results[1:]:
        for a, b in zip(ours, results[0]):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=2e-5)


def test_norm_silu_broadcasts_the_maps_of_one_clip():
    x, (scale, shift), maps = arguments(1, True, rows_of_maps=1)
    leaves = [x, scale, shift, *maps]
    expected = torch.autograd.grad(plain(x, 2, 1e-6, scale, shift, maps).square().sum(), leaves)
    ours = torch.autograd.grad(norm_silu(x, 2, 1e-6, scale, shift, maps).square().sum(), leaves)
    for a, b in zip(ours, expected):
        torch.testing.assert_close(a, b)
    with torch.no_grad():
        torch.testing.assert_close(norm_silu(x, 2, 1e-6, scale, shift, maps), plain(x, 2, 1e-6, scale, shift, maps))


def test_norm_silu_takes_a_batch_of_one_with_any_first_stride():
    """PyTorch calls it channels last, but its own kernel does not."""
    x = torch.empty_strided((1, 8, 4, 5), (7, 1, 40, 8)).normal_().requires_grad_()
    torch.testing.assert_close(norm_silu(x, 2, 1e-5, None, None), plain(x, 2, 1e-5))


def test_norm_silu_under_autocast():
    """x, and what modulates it, in bfloat16: computed in float32, returned as x came."""
    x, (scale, shift), _ = arguments(3, False, dtype=torch.float32)
    half = [v.detach().bfloat16().requires_grad_() for v in (x, scale, shift)]
    wide = [v.detach().float().requires_grad_() for v in half]
    with torch.autocast("cpu", torch.bfloat16):
        y = norm_silu(half[0], 2, 1e-5, half[1], half[2])
    expected = plain(wide[0], 2, 1e-5, wide[1], wide[2])
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y, expected.bfloat16())
    y.float().square().sum().backward()
    expected.square().sum().backward()
    for a, b in zip(half, wide):
        assert a.grad.dtype == torch.bfloat16
        torch.testing.assert_close(a.grad.float(), b.grad, rtol=0.02, atol=0.1)


def kept_bytes(function, *arguments):
    """What the backward pass of a function keeps, beside its arguments."""
    own = {v.untyped_storage()._cdata for v in arguments}
    kept = {}

    def keep(v):
        kept[v.untyped_storage()._cdata] = v.untyped_storage().nbytes()
        return v

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda v: v):
        function(*arguments)
    return sum(size for storage, size in kept.items() if storage not in own)


def test_norm_silu_keeps_no_map():
    x, (scale, shift), _ = arguments(3, False, (3, 8, 32, 32), torch.float32)
    assert kept_bytes(lambda *a: norm_silu(a[0], 2, 1e-5, a[1], a[2]), x, scale, shift) < x.nbytes / 8
    assert kept_bytes(lambda *a: plain(a[0], 2, 1e-5, a[1], a[2]), x, scale, shift) >= 2 * x.nbytes


def test_packed_convolutions_change_nothing_but_speed():
    model = tiny.model(attention=(8,), head_channels=8)
    convolutions = [part for part in model.network.modules() if isinstance(part, Conv2d)]
    past, x, future = (torch.randn(2, n, 1, 16, 16) for n in (2, 3, 1))
    time = torch.tensor([7])

    def call():
        return model.network(x, time, model.network.encode(past, future))

    with torch.no_grad():
        expected = call()
        with packed_convolutions(model.network):
            torch.testing.assert_close(call(), expected, rtol=0, atol=5e-6)  # the tolerance of the oracle
            with packed_convolutions(model.network):
                call()
            packed = [part.packed for part in convolutions]
            assert any(weight is not None for weight in packed) == torch.backends.mkldnn.is_available()
            torch.testing.assert_close(call(), expected, rtol=0, atol=5e-6)  # the tolerance of the oracle
        assert all(part.packed is None for part in convolutions)
    with packed_convolutions(model.network):  # gradients need the plain weights
        call().sum().backward()
    assert all(part.weight.grad is not None for part in convolutions)


def test_modules_may_first_be_imported_where_a_model_without_contents_is_made():
    """`import mcvd` imports them when a name is first used, which may be within `torch.device("meta")`."""
    spec = importlib.util.find_spec(winograd.__name__)
    fresh = importlib.util.module_from_spec(spec)
    with torch.device("meta"):
        spec.loader.exec_module(fresh)
    weight = torch.rand(2, 3, 3, 3)
    assert torch.equal(fresh.turn_weight(weight), winograd.turn_weight(weight))


@pytest.mark.parametrize("cache", [1, 200_000, 10**9])  # bands of an image, an image, several at a time
@pytest.mark.parametrize("shape", [(1, 5, 4, 4), (3, 5, 8, 12), (5, 9, 20, 16)])
def test_winograd_is_the_convolution(monkeypatch, shape, cache):
    monkeypatch.setattr(winograd, "CACHE", cache)
    weight, bias = torch.randn(7, shape[1], 3, 3, dtype=torch.float64), torch.randn(7, dtype=torch.float64)
    for layout in (torch.contiguous_format, torch.channels_last):
        x = torch.randn(shape, dtype=torch.float64).contiguous(memory_format=layout)
        made = winograd.convolve(x, winograd.turn_weight(weight), bias)
        torch.testing.assert_close(made, F.conv2d(x, weight, bias, padding=1), rtol=0, atol=1e-12)
        assert made.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("cache", [1, 200_000, 10**9])
@pytest.mark.parametrize("shape", [(1, 5, 4, 4), (3, 5, 8, 12), (5, 9, 20, 16)])
def test_winograd_gives_the_gradient_of_the_weight(monkeypatch, shape, cache):
    monkeypatch.setattr(winograd, "CACHE", cache)
    weight = torch.randn(7, shape[1], 3, 3, dtype=torch.float64, requires_grad=True)
    for layout in (torch.contiguous_format, torch.channels_last):
        x = torch.randn(shape, dtype=torch.float64).contiguous(memory_format=layout)
        grad = torch.randn(shape[0], 7, *shape[2:], dtype=torch.float64).contiguous(memory_format=layout)
        (expected,) = torch.autograd.grad(F.conv2d(x, weight, padding=1), weight, grad)
        torch.testing.assert_close(winograd.weight_gradient(x, grad), expected, rtol=0, atol=1e-11)


@pytest.mark.parametrize(
    ("channels", "side", "learns"), [((64, 96), 32, True), ((48, 96), 32, False), ((64, 64), 18, False)]
)
@pytest.mark.parametrize("of_x", [True, False])
def test_gradients_of_wide_convolutions(monkeypatch, channels, side, learns, of_x):
    """Of input, weight and bias: as PyTorch's, whichever way the weight's is made."""
    calls = []
    by_winograd = winograd.weight_gradient
    monkeypatch.setattr(winograd, "weight_gradient", lambda *given: calls.append(1) or by_winograd(*given))
    convolution = Conv2d(*channels, 3)
    x = torch.randn(2, channels[0], side, side, requires_grad=of_x)
    grad = torch.randn(2, channels[1], side, side)
    asked = [convolution.weight, convolution.bias, *([x] if of_x else [])]
    made = torch.autograd.grad(convolution(x), asked, grad)
    plain = F.conv2d(x, convolution.weight, convolution.bias, padding=1)
    for one, expected in zip(made, torch.autograd.grad(plain, asked, grad)):
        torch.testing.assert_close(one, expected, rtol=0, atol=1e-4 * float(expected.abs().max()))
    assert bool(calls) == (learns and torch.backends.mkldnn.is_available())


def test_a_frozen_wide_convolution_passes_gradients_on():
    convolution = Conv2d(64, 64, 3).requires_grad_(False)
    x = torch.randn(1, 64, 32, 32, requires_grad=True)
    convolution(x).square().sum().backward()
    assert x.grad.isfinite().all()
    assert convolution.weight.grad is None


@pytest.mark.parametrize(
    ("shape", "layout"), [((3, 5, 7, 9), torch.channels_last), ((2, 4, 3, 8, 8), torch.contiguous_format)]
)
def test_dropout(shape, layout):
    x = torch.ones(shape).contiguous(memory_format=layout).requires_grad_()
    torch.manual_seed(3)
    y = dropout(x, 0.25)
    y.sum().backward()
    kept = y != 0
    torch.testing.assert_close(y[kept], torch.full_like(y[kept], 4 / 3))
    assert torch.equal(x.grad, y.detach())  # the gradient goes where the values went
    assert y.stride() == x.stride()
    torch.manual_seed(3)
    assert torch.equal(dropout(x, 0.25), y)


def test_dropout_hides_the_share_that_it_should():
    """Of a million elements, within 5 standard deviations; and neighbours independent of each other."""
    for rate in (0.1, 0.5, 0.9):
        hidden = (dropout(torch.ones(1, 1, 1000, 1000), rate) == 0).double().flatten()
        assert abs(float(hidden.mean()) - rate) < 5 * (rate * (1 - rate) / 1e6) ** 0.5
        for distance in range(1, 9):
            together = float((hidden[distance:] * hidden[:-distance]).mean())
            assert abs(together - rate**2) < 5 * (rate**2 * (1 - rate**2) / 1e6) ** 0.5 + 2e-3 * rate
    assert dropout(torch.ones(2, 3, 4, 4, dtype=torch.bfloat16), 0.5).dtype == torch.bfloat16


@pytest.mark.parametrize(("count", "side", "winning"), [(1, 32, True), (1, 16, False), (2, 16, True), (8, 18, False)])
def test_wide_convolutions_of_whole_tiles_go_through_winograd(count, side, winning):
    convolution = Conv2d(96, 128, 3)
    x = torch.randn(count, 96, side, side)
    with torch.no_grad():
        expected = convolution(x)
        with packed_convolutions(convolution):
            made = convolution(x)
            if torch.backends.mkldnn.is_available():
                assert isinstance(convolution.packed, partial) == winning
    torch.testing.assert_close(made, expected, rtol=0, atol=1e-4 * float(expected.abs().max()))


def test_one_time_and_one_condition_serve_all_rows():
    for conditioning in ("concat", "spatin"):
        model = tiny.model(conditioning=conditioning, mask_embedding=True).double()
        x, past, future = (torch.randn(n, k, 1, 16, 16, dtype=torch.float64) for n, k in ((3, 3), (1, 2), (1, 1)))
        one = model.network.encode(past, future, torch.tensor([True]))
        assert one.take(torch.zeros(3, dtype=torch.long)) is one
        every = model.network.encode(past.expand(3, -1, -1, -1, -1), future.expand(3, -1, -1, -1, -1), torch.ones(3))
        time = torch.tensor([7])
        with torch.no_grad():
            expected = model.network(x, time.expand(3), every)
            torch.testing.assert_close(model.network(x, time, one), expected, rtol=0, atol=1e-12)


def test_packed_convolutions_leave_other_types_alone():
    model = tiny.model().double()
    x = torch.randn(1, 3, 1, 16, 16, dtype=torch.float64)
    condition = model.network.encode(x[:, :2], x[:, :1])
    with torch.no_grad(), packed_convolutions(model.network):
        assert model.network(x, torch.tensor([3]), condition).dtype == torch.float64


@pytest.mark.parametrize("size", [(1, 1), (1, 4), (5, 3)])
def test_upsampling_is_the_transposed_fir(size):
    x = torch.randn(2, 3, *size, dtype=torch.float64).requires_grad_()
    taps = torch.tensor([1.0, 3.0, 3.0, 1.0], dtype=torch.float64) / 4
    kernel = torch.outer(taps, taps).expand(3, 1, 4, 4)
    expected = F.conv_transpose2d(x, kernel, stride=2, padding=1, groups=3)
    torch.testing.assert_close(upsample(x), expected)
    assert torch.autograd.gradcheck(upsample, x)


@pytest.mark.parametrize("size", [(2, 2), (2, 4), (6, 4)])
def test_downsampling_has_its_gradient(size):
    x = torch.randn(2, 3, *size, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(downsample, x)


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("network", [{}, {"patch": 2}, {"frames": "pseudo3d"}], ids=["concat", "patch", "pseudo3d"])
def test_a_compiler_sees_the_same_network(network, backend):
    """Without the compiling itself. PyTorch 2.11 gets gradients wrong where a Function changes what it puts out."""
    networks = [tiny.model(attention=(8,), **network).train().network for _ in range(2)]
    networks[1].compile(backend=backend)
    x = torch.randn(2, 3, 1, 16, 16)
    gradients = []
    for network in networks:
        condition = network.encode(x[:, :2], x[:, :1])
        torch.manual_seed(0)
        network(x, torch.tensor([3, 50]), condition).square().sum().backward()
        gradients.append([weight.grad for weight in network.parameters()])
    for plain, compiled in zip(*gradients):
        torch.testing.assert_close(compiled, plain, rtol=1e-4, atol=1e-4 * float(plain.abs().max()))


@pytest.mark.parametrize("frames", ["channels", "3d"])
@pytest.mark.parametrize("clips", [1, 2])
def test_maps_that_do_not_fit_are_made_in_every_step(monkeypatch, frames, clips):
    model = tiny.model(conditioning="spatin", spatin_width=8, frames=frames)
    past, options = tiny.video(clips, 2, 1, 16, 16), {"samples": 2, "solver": "ddim", "steps": 2}
    expected = model.predict(past, 3, **options)
    monkeypatch.setattr(unet, "free_memory", lambda device: 0)
    with pytest.warns(UserWarning, match=f"maps of {1 if clips == 1 else 4} trajectories would take .* smaller batch"):
        made = model.predict(past, 3, **options)
    torch.testing.assert_close(made, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("frames", ["channels", "3d"])
def test_maps_fit_into_a_quarter_of_the_free_memory(monkeypatch, frames):
    network = tiny.model(conditioning="spatin", spatin_width=8, frames=frames).network
    condition = network.encode(torch.zeros(3, 2, 1, 16, 16), torch.zeros(3, 1, 1, 16, 16))
    size = sum(part.nbytes for maps in condition.maps for part in maps)
    monkeypatch.setattr(unet, "free_memory", lambda device: 4 * size)
    assert network.maps_fit(3)
    with pytest.warns(UserWarning, match="maps of 4 trajectories"):
        assert not network.maps_fit(4)
    monkeypatch.setattr(unet, "free_memory", lambda device: 4 * size - 1)
    with pytest.warns(UserWarning, match="maps of 3 trajectories"):
        assert not network.maps_fit(3)
    network.keeps_maps = False  # the backward pass recomputes the blocks, maps included
    assert not network.encode(torch.zeros(3, 2, 1, 16, 16), torch.zeros(3, 1, 1, 16, 16)).maps


def test_free_memory_is_what_the_system_and_the_container_leave(tmp_path):
    assert 0 < free_memory(torch.device("cpu")) < 2**50
    (tmp_path / "meminfo").write_text("MemTotal: 9 kB\nMemAvailable:   7 kB\n")
    assert memory._available(tmp_path / "meminfo") == 7 * 1024
    assert memory._available(tmp_path / "none") == memory.UNKNOWN
    for limit, left in (("100", 85), ("max", 2**63)):
        (tmp_path / "memory.max").write_text(limit + "\n")
        (tmp_path / "memory.current").write_text("40\n")
        (tmp_path / "memory.stat").write_text("anon 10\nfile 30\ninactive_file 25\n")  # videos that were read
        assert memory._left(tmp_path) == left


def test_what_recordings_hold_on_a_gpu_is_not_free(monkeypatch):
    segments = [
        {"device": device, "segment_pool_id": pool, "total_size": size, "active_size": 1}
        for device, pool, size in ((1, (0, 0), 11), (1, (0, 0), 101), (1, (0, 1), 1001), (0, (0, 0), 10001))
    ]
    monkeypatch.setattr(torch.cuda, "memory_snapshot", lambda include_traces: segments)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (5, 80))
    assert free_memory(torch.device("cuda", 1)) == 5 + 10 + 100


def test_weights_are_packed_again_for_another_number_of_images():
    """Packed for one image, this convolution of two would turn them in every call: twenty times its time."""
    convolution = Conv2d(128, 128, 3)
    one, two, more = (torch.randn(count, 128, 8, 8) for count in (1, 2, 8))
    with torch.no_grad():
        expected = [convolution(x) for x in (one, two, more, two)]
        with packed_convolutions(convolution):
            for x, y in zip((one, two, more, two), expected):
                torch.testing.assert_close(convolution(x), y, rtol=0, atol=1e-4 * float(y.abs().max()))
                assert convolution.packed_for == (x.shape if torch.backends.mkldnn.is_available() else None)
                kept = convolution.packed
                convolution(x)
                assert convolution.packed is kept

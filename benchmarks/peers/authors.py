"""The authors' code (github.com/voletiv/mcvd-pytorch) as a peer for `mcvd benchmark --peer`.

MCVD_PEER names a clone of it, outside this repository. Its network, DDPM sampler, loss, optimizer and averaged weights
run unchanged; this file only calls them, with `torch.backends.cudnn.benchmark` set as its main.py does. Its resampling
is a CUDA kernel, compiled at first use (needs nvcc), and plain torch on CPUs; MCVD_PEER_FIR=torch uses the plain one on
GPUs too.
"""

from __future__ import annotations

import importlib
import os
import sys
import types
from argparse import Namespace
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from unittest import mock

import torch
from torch import Tensor, nn

from mcvd.benchmark.peer import EMA_DECAY, GRADIENT_CLIP, LEARNING_RATE
from mcvd.device import tuned_convolutions
from mcvd.errors import McvdError
from mcvd.layout import hide, split
from mcvd.model import Draw, ModelConfig

PLAIN_FIR = os.environ.get("MCVD_PEER_FIR", "") == "torch"
NOTE = f"the authors' code, eager float32{', resampling in plain torch' if PLAIN_FIR else ''}"


def theirs(name: str) -> types.ModuleType:
    """A module of the clone. Packages that it imports for other purposes (statistics, progress bars) may be missing."""
    clone = Path(os.environ.get("MCVD_PEER", ""))
    if not (clone / "models" / "better" / "ncsnpp_more.py").is_file():
        raise McvdError("MCVD_PEER must name a clone of github.com/voletiv/mcvd-pytorch")
    if str(clone) not in sys.path:
        sys.path.insert(0, str(clone))
    for package, wanted in (("scipy.stats", "hmean"), ("tqdm", "tqdm")):
        if find_spec(package.partition(".")[0]) is None and package not in sys.modules:
            empty = types.ModuleType(package)
            setattr(empty, wanted, None)
            sys.modules[package] = empty
            sys.modules.setdefault(package.partition(".")[0], empty)
    return importlib.import_module(name)


def their_config(config: ModelConfig, device: torch.device) -> Namespace:
    """Our configuration in their terms (interop/official.py does the reverse)."""
    c, schedule = config.network, config.schedule
    if c.size[0] != c.size[1]:
        raise McvdError("the authors' networks take square frames")
    data = Namespace(
        channels=c.channels,
        image_size=c.size[0],
        num_frames=c.layout.current,
        num_frames_cond=c.layout.past,
        num_frames_future=c.layout.future,
    )
    model = Namespace(
        arch={"channels": "unetmore", "3d": "unetmore3d", "pseudo3d": "unetmorepseudo3d"}[c.frames],
        ngf=c.width,
        ch_mult=list(c.multipliers),
        num_res_blocks=c.blocks,
        attn_resolutions=list(c.attention),
        n_head_channels=c.head_channels,
        dropout=c.dropout,
        spade=c.conditioning == "spatin",
        spade_dim=c.spatin_width,
        time_conditional=c.time_embedding,
        cond_emb=c.mask_embedding,
        noise_in_cond=False,
        output_all_frames=False,
        version="DDPM",
        gamma=False,
        sigma_dist=schedule.kind,
        sigma_begin=schedule.beta_last,
        sigma_end=schedule.beta_first,
        num_classes=schedule.steps,
        nonlinearity="swish",
        normalization="InstanceNorm++",
    )
    optim = Namespace(optimizer="Adam", lr=LEARNING_RATE, weight_decay=0.0, beta1=0.9, amsgrad=False, eps=1e-8)
    return Namespace(data=data, model=model, optim=optim, device=device)


class Enough(Exception):
    """Ends their sampler before its last step; holds the input of the next call."""


class Counted:
    """Their network, for at most `calls` calls."""

    def __init__(self, net: nn.Module, calls: int):
        self.module, self.left = net, calls

    def __call__(self, x: Tensor, labels: Tensor, cond: Tensor | None = None) -> Tensor:
        if self.left == 0:
            raise Enough(x)
        self.left -= 1
        return self.module(x, labels, cond)


def build(config: ModelConfig, state_dict: dict[str, Tensor]) -> dict[str, Callable]:
    device = next(iter(state_dict.values())).device
    published = their_config(config, device)
    net = theirs("models.better.ncsnpp_more").UNetMore_DDPM(published).to(device)
    missing, unknown = net.load_state_dict(state_dict, strict=False)
    missing = [name for name in missing if name.startswith("unet.all_modules")]
    if missing or unknown:
        raise McvdError(f"the authors' network has other weights: {[*missing, *unknown][:3]}")
    net.eval()
    resampling = theirs("models.better.op.upfirdn2d")
    if PLAIN_FIR:
        plain = resampling.upfirdn2d_native

        def both_ways(x: Tensor, kernel: Tensor, up: int = 1, down: int = 1, pad: tuple[int, int] = (0, 0)) -> Tensor:
            return plain(x, kernel, up, up, down, down, *pad, *pad)

        theirs("models.better.up_or_down_sampling").upfirdn2d = both_ways
    trained: list = []

    def network(past: Tensor, future: Tensor) -> Callable[[Tensor, Tensor], Tensor]:
        condition = fold(past, future)

        @tuned_convolutions()
        @torch.no_grad()
        def call(x: Tensor, time: Tensor) -> Tensor:
            return net(x.flatten(1, 2), time, condition).view_as(x)

        return call

    @tuned_convolutions()
    def sample(past: Tensor, future: Tensor, x: Tensor, noise: Callable[[], Tensor], steps: int, calls: int) -> Tensor:
        each = len(x) // len(past)
        condition = fold(past, future).repeat_interleave(each, 0)
        sampler = theirs("models").ddpm_sampler
        # their sampler draws noise by torch.randn_like
        with mock.patch.object(torch, "randn_like", lambda like: noise().view_as(like)):
            try:
                state = sampler(
                    x.flatten(1, 2),
                    Counted(net, calls),
                    condition,
                    final_only=True,
                    denoise=False,
                    subsample_steps=steps,
                )[0]
            except Enough as end:
                state = end.args[0]
        return state.view_as(x)

    @tuned_convolutions()
    def train_step(video: Tensor, draw: Draw) -> Tensor:
        if not trained:
            average = theirs("models.ema").EMAHelper(mu=EMA_DECAY)
            average.register(net)
            trained.extend((theirs("losses").get_optimizer(published, net.parameters()), average))
        optimizer, average = trained
        optimizer.zero_grad()
        net.train()
        past, current, future = split(video.float() / 127.5 - 1, config.network.layout)
        condition = fold(hide(past, draw.past_seen), hide(future, draw.future_seen))
        labels = config.schedule.steps - 1 - draw.t
        eps = draw.eps.flatten(1, 2)
        with mock.patch.object(torch, "randn_like", return_value=eps):
            loss = theirs("losses.dsm").anneal_dsm_score_estimation(net, current.flatten(1, 2), labels, cond=condition)
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), GRADIENT_CLIP)
        optimizer.step()
        average.update(net)
        return loss.detach()

    return {"network": network, "sample": sample, "train_step": train_step}


def fold(past: Tensor, future: Tensor) -> Tensor:
    """Their condition: past, then future frames, as channels."""
    return torch.cat([past, future], 1).flatten(1, 2)

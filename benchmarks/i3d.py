"""How much faster this I3D is than a straightforward one, in clips per second, in one interleaved run.

    python benchmarks/i3d.py --frames 10 16 --clips 4 --rounds 5

`straight` is I3D as in its paper and ports: ``(B, C, T, H, W)``, explicit padding, 3-D convolution, batch-norm,
ReLU, 3-D max-pool, the four branches of a block one after the other, under `torch.no_grad`. Both use the same weights
and threads (OMP_NUM_THREADS), one after the other in each round; the best round of each counts. Prints a line per clip
length with the ratio of clips per second, that of processor time (steadier on a busy machine) and the largest
difference of the logits.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import argparse
import json
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from mcvd.benchmark.measure import interleave
from mcvd.evaluation import i3d
from mcvd.evaluation.weights import load_weights


class Straight:
    """A straightforward I3D."""

    def __init__(self, weights: dict[str, Tensor]) -> None:
        self.weights = weights

    @torch.no_grad()
    def __call__(self, clips: Tensor) -> Tensor:
        x = 2 * clips.transpose(1, 2) - 1
        x = self.pool(self.unit(x, "1a", (2, 2, 2)), (1, 3, 3), (1, 2, 2))
        x = self.pool(self.unit(self.unit(x, "2b"), "2c"), (1, 3, 3), (1, 2, 2))
        for stage in i3d.MIXED:
            if stage in ("4b", "5b"):
                size = 3 if stage == "4b" else 2
                x = self.pool(x, (size, size, size), (2, 2, 2))
            branches = [
                self.unit(x, f"{stage}.0"),
                self.unit(self.unit(x, f"{stage}.1a"), f"{stage}.1b"),
                self.unit(self.unit(x, f"{stage}.2a"), f"{stage}.2b"),
                self.unit(self.pool(x, (3, 3, 3), (1, 1, 1)), f"{stage}.3"),
            ]
            x = torch.cat(branches, 1)
        x = F.avg_pool3d(x, (2, 7, 7), 1)
        x = F.conv3d(x, self.weights["logits.weight"], self.weights["logits.bias"])
        return x.mean(2).flatten(1)

    def unit(self, x: Tensor, name: str, stride: tuple[int, int, int] = (1, 1, 1)) -> Tensor:
        weight = self.weights[f"{name}.weight"]
        x = F.conv3d(self.pad(x, tuple(weight.shape[2:]), stride, 0.0), weight, stride=stride)
        mean, var, shift = (self.weights[f"{name}.{part}"] for part in ("mean", "var", "shift"))
        return F.relu(F.batch_norm(x, mean, var, None, shift, training=False, eps=i3d.BATCH_NORM_EPS))

    def pool(self, x: Tensor, size: tuple[int, int, int], stride: tuple[int, int, int]) -> Tensor:
        return F.max_pool3d(self.pad(x, size, stride, -torch.inf), size, stride)

    @staticmethod
    def pad(x: Tensor, size: tuple[int, ...], stride: tuple[int, int, int], value: float) -> Tensor:
        sides = [i3d.same_padding(n, k, s) for n, k, s in zip(x.shape[2:], size, stride)]
        return F.pad(x, [amount for side in reversed(sides) for amount in side], value=value)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, nargs="+", default=[10, 16], help="lengths of the clips")
    parser.add_argument("--clips", type=int, default=4, help="clips in one batch")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--weights", help="file or folder with the weights")
    parser.add_argument("--json", action="store_true", help="print JSON lines")
    options = parser.parse_args()

    ours, straight = i3d.load(options.weights), Straight(load_weights("i3d", options.weights))
    for frames in options.frames:
        clips = torch.rand(options.clips, frames, 3, 224, 224, generator=torch.Generator().manual_seed(0))
        difference = (ours(clips) - straight(clips)).abs().max().item()
        calls = {"straight": partial(straight, clips), "ours": partial(ours, clips)}
        taken = interleave(calls, options.rounds, torch.device("cpu"))
        wall, processor = ({name: min(times[name][i] for times in taken) for name in calls} for i in (0, 1))
        rates = {name: round(options.clips / value, 3) for name, value in wall.items()}
        ratio, processor_ratio = (round(best["straight"] / best["ours"], 2) for best in (wall, processor))
        threads = torch.get_num_threads()
        if options.json:
            row = {"frames": frames, "threads": threads, "clips_per_s": rates, "ratio": ratio, "difference": difference}
            print(json.dumps({**row, "processor_ratio": processor_ratio}), flush=True)
        else:
            speeds = f"straight {rates['straight']:.2f}, ours {rates['ours']:.2f} clips/s, {ratio:.2f} times"
            more = f"{processor_ratio:.2f} times in processor time; logits differ by {difference:.1e}"
            print(f"{frames} frames, {threads} threads: {speeds}, {more}", flush=True)


if __name__ == "__main__":
    main()

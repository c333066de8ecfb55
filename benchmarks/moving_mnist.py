"""Clips per second of Stochastic Moving MNIST on one core: python benchmarks/moving_mnist.py [--frames 15]."""

import argparse
import time

import torch

from mcvd.data.moving_mnist import MovingMNIST

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--frames", type=int, default=15, help="frames per clip")
parser.add_argument("--batch", type=int, default=128, help="clips per batch")
parser.add_argument("--seconds", type=float, default=3.0, help="how long to measure")
parser.add_argument("--device", default="cpu")
args = parser.parse_args()

torch.set_num_threads(1)
digits = torch.randint(0, 256, (60_000, 32, 32), dtype=torch.uint8)  # as many as MNIST, so that caches behave the same
for size in (64, 32):
    data = MovingMNIST(digits, args.frames, size=size, device=args.device)
    data.batch(range(args.batch))
    done, start = 0, time.perf_counter()
    while time.perf_counter() - start < args.seconds:
        video = data.batch(range(done, done + args.batch))
        done += args.batch
    _ = video.sum().item()  # waits for a GPU
    rate = done / (time.perf_counter() - start)
    print(f"{size} px, {args.frames} frames, batch {args.batch}, {args.device}: {rate:,.0f} clips/s")

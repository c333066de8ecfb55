"""Makes examples/digits.mp4: 20 frames of two MNIST test digits that move and bounce (Stochastic Moving MNIST, 64x64).

    python examples/make_digits_clip.py [folder of the MNIST files]

MNIST is by Y. LeCun, C. Cortes and C. Burges (CC BY-SA 3.0).
"""

import sys
from pathlib import Path

import mcvd
from mcvd.data.moving_mnist import MovingMNIST, find_mnist, load_digits

folder = find_mnist(sys.argv[1] if len(sys.argv) > 1 else None)
clip = MovingMNIST(load_digits(folder, "test"), frames=20, seed=4)[119]  # its digits stay apart: easy to follow
print(mcvd.write_video(Path(__file__).with_name("digits.mp4"), clip, fps=10))

"""mcvd fills in the missing frames of a video with one masked conditional diffusion model (MCVD, arXiv 2205.09853)."""

from mcvd.layout import BlockLayout, Masking
from mcvd.model import ModelConfig, VideoDiffusion

__all__ = ["BlockLayout", "Masking", "ModelConfig", "VideoDiffusion"]
__version__ = "0.1.0"

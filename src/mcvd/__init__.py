"""mcvd fills in the missing frames of a video with one masked conditional diffusion model (MCVD, arXiv 2205.09853).

model = mcvd.load("digits")
past = mcvd.read_video("clip.mp4", size=model.size)
video = model.predict(past, frames=20, samples=4)
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mcvd.data.video import contact_sheet, read_video, video_info, write_video
    from mcvd.errors import McvdError
    from mcvd.interop.load import load
    from mcvd.layout import BlockLayout, Masking
    from mcvd.model import ModelConfig, VideoDiffusion
    from mcvd.planner import draw_plan, plan

__version__ = "0.1.0"

_HOME = {
    "BlockLayout": "mcvd.layout",
    "Masking": "mcvd.layout",
    "McvdError": "mcvd.errors",
    "ModelConfig": "mcvd.model",
    "VideoDiffusion": "mcvd.model",
    "contact_sheet": "mcvd.data.video",
    "draw_plan": "mcvd.planner",
    "load": "mcvd.interop.load",
    "plan": "mcvd.planner",
    "read_video": "mcvd.data.video",
    "video_info": "mcvd.data.video",
    "write_video": "mcvd.data.video",
}
__all__ = [
    "BlockLayout",
    "Masking",
    "McvdError",
    "ModelConfig",
    "VideoDiffusion",
    "contact_sheet",
    "draw_plan",
    "load",
    "plan",
    "read_video",
    "video_info",
    "write_video",
]


def __getattr__(name: str) -> Any:
    # torch takes seconds to import: `mcvd --help` and `import mcvd` do without it until something needs it
    if name not in _HOME:
        raise AttributeError(f"module 'mcvd' has no attribute {name!r}")
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])

"""Raw videos in, a prepared data set out (see `mcvd.data.shards` for what is written)."""

from mcvd.data.prepare.cached import prepared_data
from mcvd.data.prepare.info import DataInfo, data_sheet, info, open_data
from mcvd.data.prepare.run import prepare
from mcvd.data.settings import PRESETS, Settings

__all__ = ["PRESETS", "DataInfo", "Settings", "data_sheet", "info", "open_data", "prepare", "prepared_data"]

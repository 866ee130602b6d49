"""What compressing would give and take, said before any weight is read.

inventory.py        config.json -> every weight of the model, on the meta device
graph_inventory.py  OpenVINO IR -> the same, from its graph
precision.py        a recipe's rules -> mode, group size and bytes of each weight
peak_memory.py      peak memory of the run
prediction.py       all of it, against what the machine has
"""

from llmcompress.compression.forecast.prediction import forecast, require_fits
from llmcompress.compression.forecast.records import Forecast, PlannedLayer

__all__ = ["Forecast", "PlannedLayer", "forecast", "require_fits"]

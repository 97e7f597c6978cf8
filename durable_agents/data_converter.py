"""How do values become Temporal payloads?"""

from temporalio.contrib.pydantic import pydantic_data_converter
from temporalio.converter import DataConverter

DATA_CONVERTER: DataConverter = pydantic_data_converter
"""Plain JSON by pydantic, for clients and workers alike: readable in the Web UI, and a signal typed by hand is understood."""

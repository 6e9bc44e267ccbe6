"""A trained model for others: a Hugging Face folder with a card that says how it was made and what is known of it.

Importing this loads no torch.
"""

from align.export.folder import ExportResult, export_model, write_model
from align.export.source import ModelSource, open_source

__all__ = ["ExportResult", "ModelSource", "export_model", "open_source", "write_model"]

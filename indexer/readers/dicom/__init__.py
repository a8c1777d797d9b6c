"""DICOM series: found by their headers, brought together as volumes in RAS+, or refused with the reason."""

from indexer.readers.dicom.reading import read
from indexer.readers.dicom.series import Objects, is_dicom, objects, series

__all__ = ["Objects", "is_dicom", "objects", "read", "series"]

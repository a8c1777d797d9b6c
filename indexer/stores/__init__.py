"""Engines for the vectors of an index, behind one protocol; nobody outside names one of them."""

from indexer.stores.filed import Filed, Piece
from indexer.stores.protocol import Difference, Site, Store, VectorIndex
from indexer.stores.registry import LOCAL, address, store

__all__ = ["LOCAL", "Difference", "Filed", "Piece", "Site", "Store", "VectorIndex", "address", "store"]

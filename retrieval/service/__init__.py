"""The index over HTTP: ``cbir serve`` (needs the extra ``cbir[serve]``)."""

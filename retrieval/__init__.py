"""Ask a case index. Programs import :mod:`cbir`, which is the public interface."""

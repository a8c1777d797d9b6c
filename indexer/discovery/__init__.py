"""What a folder is: one look at all of it, before anything is embedded.

Paths go through small functions that need no files: tokens of names (:mod:`tokens`), what their words say
(:mod:`roles`, :mod:`vocabulary`), who and when (:mod:`people`), what each file is (:mod:`layout`).
:mod:`walk`, :mod:`sidecars`, :mod:`stacks`, :mod:`series` and :mod:`content` know the files;
:mod:`plan` puts it together.
"""

from indexer.discovery.plan import Discovery, Planned, discover, read

__all__ = ["Discovery", "Planned", "discover", "read"]

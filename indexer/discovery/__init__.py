"""What a folder is: one look at all of it, before anything is embedded.

Paths go through small functions that need no files: tokens of names (:mod:`tokens`), what their words say
(:mod:`roles`, :mod:`vocabulary`), who and when (:mod:`people`), what each file is (:mod:`layout`).
:mod:`walk`, :mod:`candidates`, :mod:`sidecars`, :mod:`stacks`, :mod:`series` and :mod:`content` know the
files; :mod:`outlines`, :mod:`classes` and :mod:`unread` say what goes with them; :mod:`survey` puts it
together into a :mod:`plan`.
"""

from indexer.discovery.plan import Discovery, Planned
from indexer.discovery.survey import discover, read

__all__ = ["Discovery", "Planned", "discover", "read"]

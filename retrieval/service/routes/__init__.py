"""The routes: who may call what, how a request is read, what is answered and written to the audit trail."""

from retrieval.service.routes import asking, cases, changes, queries, state
from retrieval.service.routes.route import STATIC, Route

ROUTES: tuple[Route, ...] = (
    *state.ROUTES,
    *asking.ROUTES,
    *queries.ROUTES,
    *cases.ROUTES,
    *changes.ROUTES,
)
"""All of them, in the order in which they are tried."""

__all__ = ["ROUTES", "STATIC", "Route"]

"""The models behind the gateway: the one of its own settings, and those that workers announce."""

import logging
from collections.abc import Collection
from dataclasses import dataclass

from contract.card import ModelCard
from contract.cost import CostModel
from contract.errors import InvalidCard
from contract.errors import InvalidRequest as OutOfBounds
from service.errors import InvalidRequest
from service.settings import Settings
from service.store import JobStore

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Served:
    """One model: what it can do and what it costs."""

    name: str
    card: ModelCard
    costs: CostModel
    factor: float = 1.0  # how much longer its jobs really take than the formula says
    workers: int = 0

    def price(self, request: dict, media: Collection[str] = (), rank: int = 0) -> tuple[float, float]:
        """Predicted GPU-seconds of a complete request with such media and adapters of so much rank: as the formula says, and as jobs really take.

        Raises InvalidRequest where nothing is left to do, such as for a strength that changes no step of a clip.
        """
        try:
            raw = self.costs.predict(request, self.card.geometry, media, self.card.continues, rank)
        except OutOfBounds as error:
            raise InvalidRequest(error.field, error.value, error.allowed) from None
        return raw, raw * self.factor


class Catalogue:
    """`refresh` reads what workers said; in between it answers from memory."""

    def __init__(self, settings: Settings):
        self.own = settings.model_name
        self._own = Served(self.own, settings.card, settings.costs)
        self.models = {self.own: self._own}

    def refresh(self, store: JobStore) -> None:
        factors, workers = store.cost_factors(), store.live_workers()
        found = {self.own: (self._own.card, self._own.costs)}
        for name, (card, costs) in store.announced().items():
            if name != self.own:
                try:
                    found[name] = ModelCard.from_dict(card, name), CostModel.from_dict(costs)
                except InvalidCard as error:
                    logger.warning("a model is left out", extra={"model": name, "reason": str(error)})
        self.models = {
            name: Served(name, *about, factors.get(name, 1.0), workers.get(name, 0)) for name, about in found.items()
        }

    def find(self, name: object) -> Served:
        """The model of this name, without one the gateway's own."""
        served = self.models.get(name or self.own) if isinstance(name, str | None) else None
        if served is None:
            raise InvalidRequest("model", name, ", ".join(map(repr, self.models)))
        return served

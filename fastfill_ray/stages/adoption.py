"""The inputs as they lay there when they were last looked at; and what a run does when they change under its hands."""

from __future__ import annotations

from collections import Counter
from typing import Any

from fastfill_ray.config import BackfillConfig, input_paths, plan_settings
from fastfill_ray.errors import ConfigError, InputError
from fastfill_ray.inputs.locate import Listing
from fastfill_ray.stages import preflight
from fastfill_ray.stages.context import Context
from fastfill_ray.stages.plan import Request
from fastfill_ray.stages.snapshot import Snapshot, inspect_gallery
from fastfill_ray.types import fingerprint

_GALLERY = "gallery.path"
# Times that inputs which change are adopted, until the run has made one more wave.
_ADOPTIONS = 3


class Inputs:
    """What a run reads, and what it is asked for by that.

    Attributes:
        listings: {config key: what lies there}. unsaid: what is passed over, in words for people.
    """

    def __init__(self, config: BackfillConfig, context: Context) -> None:
        self._config, self._context = config, context
        self._adoptions: Counter[int] = Counter()  # by how many waves were made then
        self._before: dict[str, Listing] | None = None  # until the last adoption
        self._refused: list[list[Any]] | None = None  # pins of a gallery that cannot be adopted
        self.listings = self._look()
        self.unsaid = [f"{key}: {listing}" for key, listing in self.listings.items() if listing.skipped]

    def _look(self) -> dict[str, Listing]:
        return preflight.list_inputs(self._context.store, input_paths(self._config))

    @property
    def request(self) -> Request:
        """What a plan for these inputs is asked for."""
        pins = {key: preflight.input_pins(listing) for key, listing in self.listings.items()}
        every = [pin for each in pins.values() for pin in each]
        named = fingerprint([plan_settings(self._config, exclude_defaults=True), every])
        others = fingerprint({key: each for key, each in pins.items() if key != _GALLERY})
        return Request(named, plan_settings(self._config), others)

    def has_changed(self, before: Snapshot | None) -> bool:
        """Whether the gallery is another by now, and can be adopted.

        What cannot be read, such as a file that is being written, is left to the next start, and said.

        Args:
            before: the gallery of the plan at work.
        """
        config, store = self._config, self._context.store
        try:
            [listing] = preflight.list_inputs(store, {_GALLERY: config.gallery.path}).values()
            if preflight.input_pins(listing) in (preflight.input_pins(self.listings[_GALLERY]), self._refused):
                return False
            inspect_gallery(store, listing.files, config.gallery, config.resources, before)
        except (InputError, ConfigError) as error:
            self._context.progress.say(f"the gallery has changed, but cannot be adopted now: {error}")
            return False
        return True

    def can_adopt(self, waves: int) -> bool:
        """Whether a change is adopted: not where ``gallery.follow`` says no, nor without end.

        Args:
            waves: that are made; with one more the count begins anew.
        """
        return self._config.gallery.follow and self._adoptions[waves] < _ADOPTIONS

    def _is_there(self, listings: dict[str, Listing]) -> bool:
        """Whether the gallery of that time is still what lies there, or among it."""
        now = preflight.input_pins(self.listings[_GALLERY])
        return all(pin in now for pin in preflight.input_pins(listings[_GALLERY]))

    def adopt(self, why: str, waves: int) -> None:
        """Go on with the inputs as they are now. What is embedded by then stays."""
        self._adoptions[waves] += 1
        self._context.progress.say(f"{why}: a new plan for the inputs as they are now")
        self._before, self.listings = self.listings, self._look()

    def go_on_as_before(self, why: str, waves: int) -> bool:
        """What is refused does not end a run that is going on. False at a start, and where it gets nowhere."""
        if self._before is None or not self.can_adopt(waves) or not self._is_there(self._before):
            return False
        self._context.progress.say(f"the gallery cannot be adopted now: {why}")
        self._refused = preflight.input_pins(self.listings[_GALLERY])
        self.listings = self._before
        return True

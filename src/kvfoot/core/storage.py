"""How a cache stores its entries: in how many bits, and where (decision 0040)."""

from dataclasses import dataclass
from typing import Literal

Place = Literal["device", "host"]


@dataclass(frozen=True)
class Storage:
    """bits: of a number of a key or value, 8 or 4; None: in the model's dtype. values: where the values lie.

    Keys lie on the device: whoever chooses entries looks at all of them.
    """

    bits: int | None = None
    values: Place = "device"

    @property
    def plain(self) -> bool:
        """Whether attention can read the pages as they are."""
        return self.bits is None and self.values == "device"


PLAIN = Storage()

"""The base of everything that is written down as JSON about pictures and detectors."""

import pydantic


class Facts(pydantic.BaseModel):
    """Frozen, and the same when it is read back."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid")

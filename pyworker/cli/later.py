"""CLI: a module of the standard library that is imported when something of it is used, though others import it before.

For what click imports for its help alone: an eighth of the CPU time of a command.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any


class _Later(ModuleType):
    """Stands for a module until somebody wants something of it."""

    def __getattr__(self, name: str) -> Any:
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]
        module = __import__(self.__name__)
        self.__dict__.update(module.__dict__)
        return getattr(module, name)


def import_later(name: str, **meanwhile: Any) -> ModuleType:
    """Have `import NAME` cost nothing until something of it is used. `name`: at the top, like inspect.

    `meanwhile`: what stands for some of it in what is imported next; to be deleted from the module that is returned.
    """
    module = _Later(name)
    module.__dict__.update(meanwhile)
    sys.modules.setdefault(name, module)
    return module

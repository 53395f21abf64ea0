"""Floor 3: what a candidate is worth. Importing it imports every module here, so that each evaluator is registered by its own."""

import pkgutil
from importlib import import_module

for _module in pkgutil.iter_modules(__path__):
    import_module(f"{__name__}.{_module.name}")

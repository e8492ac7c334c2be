"""Let `timm.create_model("vil_tiny_patch16_224")` work wherever both packages are imported, in either order.

timm takes seconds to import, so importing this package must not bring it in. Instead its import is watched for.
"""

import importlib
import importlib.util
import sys
from importlib.abc import MetaPathFinder

REGISTERS = "xlstm_unet_lab.models.vil_classifier"


class AfterTimm(MetaPathFinder):
    """Stands first among Python's finders until timm is imported, and steps aside then."""

    asking = False  # the other finders: this one must not answer itself

    def find_spec(self, name, path=None, target=None):
        if name != "timm" or self.asking:
            return None
        self.asking = True
        spec = importlib.util.find_spec("timm")
        self.asking = False
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def execute_and_register(module):
                if self in sys.meta_path:
                    sys.meta_path.remove(self)
                execute(module)
                importlib.import_module(REGISTERS)

            spec.loader.exec_module = execute_and_register  # type: ignore[method-assign]  # on this one loader
        return spec


def register_with_timm() -> None:
    """Register the Vision-LSTM models now if timm is there, otherwise when it is imported."""
    if "timm" in sys.modules:
        importlib.import_module(REGISTERS)
    elif not any(isinstance(finder, AfterTimm) for finder in sys.meta_path):
        sys.meta_path.insert(0, AfterTimm())

"""A handler that is named, as `module:handler`: for the command line and for processes that are told what to run."""

import difflib
import importlib
import sys
from operator import attrgetter
from pathlib import Path

from rqlab.errors import ValidationError


def load(name: str) -> object:
    """What `module:name` names. The current directory can be imported from, as with `python -m`."""
    module_name, _, attribute = name.partition(":")
    if not module_name or not attribute or "/" in module_name or module_name.endswith(".py"):
        raise ValidationError(
            f"handler: expected MODULE:HANDLER, such as tasks:send for send in tasks.py; got {name!r}"
        )
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is not None and f"{module_name}.".startswith(f"{error.name}."):
            raise ValidationError(
                f"handler: no module named {error.name!r}; looked in {Path.cwd()} and in what is installed. "
                "Start the worker in the directory that holds it, or set PYTHONPATH"
            ) from None
        raise _broken(module_name, error) from None
    except (Exception, SystemExit) as error:  # noqa: BLE001  # whatever the user's module does wrong at import
        raise _broken(module_name, error) from None
    try:
        return attrgetter(attribute)(module)
    except AttributeError:
        close = difflib.get_close_matches(attribute, dir(module), 1)
        hint = f"; did you mean {module_name}:{close[0]}?" if close else f"; look for it in {module.__file__}"
        raise ValidationError(f"handler: module {module_name!r} has no {attribute!r}{hint}") from None


def _broken(module_name: str, error: BaseException) -> ValidationError:
    """The user's module cannot be imported: which error, and where in the user's own lines."""
    trace = error.__traceback__
    where = ""
    while trace is not None:
        file_name = trace.tb_frame.f_code.co_filename
        if not file_name.startswith("<frozen") and file_name not in (__file__, importlib.__file__):
            where = f" ({file_name}, line {trace.tb_lineno})"
        trace = trace.tb_next
    return ValidationError(f"handler: cannot import {module_name!r}: {type(error).__name__}: {error}{where}")

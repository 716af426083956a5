"""What the fields of a record mean: the sentence beside each in the source, put where `help()` shows it.

The sentence is written once, as `#:` behind its field; the docstring that people read in a notebook is made from it.
"""

import inspect
import linecache
import re
import sys
from typing import TypeVar

Record = TypeVar("Record", bound=type)

FIELD = re.compile(r"^    (\w+): .+?  #: (.+)$", re.MULTILINE)  # its name, and its sentence


def explained(record: Record) -> Record:
    """The same class with the sentences of its fields behind its docstring.

    It stays as it is where there are none to be had: Python keeps no docstrings (-OO), or no source.
    """
    module = sys.modules[record.__module__]
    source = "".join(linecache.getlines(module.__file__ or "", vars(module)))
    body = re.search(rf"^class {record.__name__}\b.*\n((?:    .*\n|\n)*)", source, re.MULTILINE)
    if body and record.__doc__:
        sentences = [f"- `{name}`: {sentence}" for name, sentence in FIELD.findall(body[1])]
        record.__doc__ = "\n".join((inspect.cleandoc(record.__doc__), "", *sentences))
    return record

"""Names that others chose, shown so that they can do no harm."""

import re

# Line breaks, escape codes of terminals, marks that turn the direction of writing, and what stands for bytes of a
# file's name that are no UTF-8, which nothing can print.
UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: object) -> str:
    """The text on one line; of what is not to be printed its number, such as \\x1b."""
    return UNSAFE.sub(lambda found: found[0].encode("unicode_escape").decode(), str(text))


def tells_of_full_memory(error: Exception) -> bool:
    """Whether an error says that memory is full: torch's RuntimeError does so in words, for a GPU and the processor."""
    return isinstance(error, MemoryError) or bool(re.search("out of memory|memory: you tried to allocate", str(error)))


def printable_lines(text: object) -> str:
    """The same of a text that has lines of its own."""
    return "\n".join(map(printable, str(text).split("\n")))

"""What the operating system gives: processes and signals, privileges, files, sockets, the log.

The import budget
-----------------

With xinetd, inetd and systemd's Accept=yes each connection pays for an interpreter, so what is
imported before the greeting is a budget. `tests/bench/imports` prints it module by module, and
fails on a new one that nobody has accepted; `tests/bench/floor` compares a whole session with a
bare interpreter. What modules cost with all that they bring along, in times of what starting a bare
interpreter takes (`python3 -I -S -c pass`; each by `python3 -I -S -X importtime -c "import re"`,
with Python 3.11):

    signal 0.5    socket 1.0        typing 1.2    collections 0.3      re 0.7
    hashlib 0.4   dataclasses 1.8   logging 1.6   argparse 1.0         a file of ours 0.04

Four habits follow from it, wherever code is on the way to the greeting:

- `signal` and `socket` come from here: at run time they are the C modules `_signal` and `_socket`,
  which `signal` and `socket` wrap into enums. mypy sees the modules that everybody knows. What only
  the wrappers have (accept, makefile, create_server, `with`) is not there at run time.
- `TYPE_CHECKING = False` stands in each module in place of the import from `typing`: mypy goes by
  the name. What only annotations need is imported below it.
- Classes with `__slots__` are written by hand: `dataclasses` is dearest.
- What is needed later is imported later, inside the function that needs it, or while the client
  reads the greeting (`doors.per_connection`); `mailspool.light` gets `array` and `md5` without what
  they bring along.

The listener pays once, and imports before it forks what its children need: they share it.
"""

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal as signal
    import socket as socket
else:
    import _signal as signal
    import _socket as socket

__all__ = ["signal", "socket"]

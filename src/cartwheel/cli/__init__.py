"""The command line. One file per group of commands.

In reading order: ``main`` (the table of commands, and how errors end), ``common`` (options and output that commands share),
``start`` (one node), ``dev`` and ``supervisor`` (a local cluster), ``keys`` (get, put, del, explain), ``cluster`` (status,
hints), ``ring``, ``bucket``, ``demo``.

Rules for every command: it speaks to nodes through ``client.resp`` and nothing else, what prints data has ``--json``, an error
is one line on standard error, and the exit code is 0 (done), 1 (the operation failed) or 2 (wrong usage or configuration).
"""

"""The load generator behind ``cartwheel bench``, and the standard benchmark behind ``make bench``.

In reading order: ``options`` (what to do), ``requests`` (which keys and commands), ``generator`` (one process that sends
them), ``run`` (several such processes, and the merging of what they measured), ``result`` and ``render`` (what comes out),
``command`` (the command line), ``standard`` (Cartwheel side by side with a lone Redis). ``strategies`` stands by itself:
it needs no cluster, and asks how evenly rings of several makes spread the load (``cartwheel ring simulate``).
"""

"""The balloon driver of the emulated guest.

* `balloon`: the state that the operations share, and the steps that they are written in.
* `driver`: initialisation, the size worker, statistics, the OOM notifier, removal.
* `designs`: the locking designs, a file each.

Written in the primitives of `balloonvq.runtime` only.
"""

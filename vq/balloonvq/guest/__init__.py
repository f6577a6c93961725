"""The emulated guest kernel: pages, allocation, reclaim, OOM, tasks, compaction, statistics.

Written in the primitives of `balloonvq.runtime` only. What a guest is made of:

* `pages`: who has which page; batches of page frame numbers.
* `kernel`: allocation, direct reclaim, OOM, the killer.
* `notifiers`, `stack`: what reclaim and OOM call in a driver, and how deep the stack is there.
* `tasks`: programs that own pages and check them.
* `compaction`: isolates and migrates balloon pages.
* `guest_stats`: what the guest reports about itself.
"""

"""The device offered to any vhost-user front end: a VMM, or User Mode Linux.

* `messages`  the protocol's messages, sans-IO: bytes to checked values and back
* `layout`    which vring number is which queue
* `session`   what the messages of one front end do to the device
* `backend`   the socket, its descriptors, one front end after another

The protocol is QEMU's docs/interop/vhost-user.rst.
"""

from __future__ import annotations

"""QMP, the wire between a command and a machine.

QMP is QEMU's monitor protocol: JSON objects over a unix socket, one a line.
A machine of balloonctl speaks it, so that QEMU's own tools drive it, and the
commands of balloonctl speak it, so that they drive QEMU.

Read in this order:

* `messages`: bytes to objects and back, without any I/O;
* `commands`: what each verb does to a machine;
* `server`: the socket of a machine;
* `client`: the other end of it, blocking.

Nothing is imported here: a command that only asks for a status pays for the
client and not for the server.
"""

"""The explorer: every interleaving of a program, or a statement about how many were not looked at.

Files in reading order:

============  ====================================================================
operations    what an actor can do: pure steps on one object
world         the objects of a program, which operations are scheduling points, and why
bytecode      what a frame that stands in a call does not show, found in its instructions
local_state   where an actor stands, read off its frames
automaton     what one actor can do, learned by running it alone
kernel        states and tables in C
tables        all actors together: states, steps, and what is wrong with a state
search        goes through the states, and finds schedules to them
comparison    real executions against the tables
product       engine P: learns, searches, checks and answers
liveness      livelocks in the product
naive         engine N: brute force, the oracle
dpor          engine D: partial-order reduction on real executions
random_walk   engine R: random schedules
races         data races by vector clocks
verdict       what an engine answers
replay        a schedule in twenty characters
timeline      a schedule as something to look at
live          a schedule on real threads
live_guest    real pages, rings and a real device, in place of the model's
promela       the same program for SPIN
programs      random programs on which all engines must agree
============  ====================================================================

The code under test runs on `balloonvq.runtime.execution` and `balloonvq.runtime.runs`; with `live` on `balloonvq.runtime.baton`.
"""

"""The in-memory world: the real cores on a virtual clock, network, broker and disk, from a seed.

`world.run(seed)` is the door. Everything that happens in it is a function of the seed: one
heap of events in virtual milliseconds, random streams derived from the seed, no thread, no
socket and no clock. The cores take and give bytes, as in their shells.

Who owns what: `clock` the time and the random streams; `broker` connections, subscriptions,
retained messages and wills; `disk` what the controller has committed; `nodes` the processes
around the cores; `workload` what clients ask for and what must come of it; `faults` what goes
wrong and when; `oracles` what must never be seen.
"""

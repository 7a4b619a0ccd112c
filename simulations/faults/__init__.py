"""Fault injection: processes that work on a store are killed, cut from power, or run out of disk.

`tape` is what a victim leaves behind in shared memory, `watch` records its system calls there, `disk` makes
of them what a power cut would leave; `work` is what victims do and what must come of it, `victim` does it,
`check` compares, `harness` draws the faults and counts.
"""

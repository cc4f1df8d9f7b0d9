"""What a run survives: kills, full disks, damage, a stepped clock, changed inputs, a failing Hub.

    make faults                                   # twenty minutes, and the table in docs
    python -m tests.faults --minutes 5 --only kill,clock

Every trial runs real worker processes to the end and compares with a run that nobody disturbed: the
same weights to the bit, and the same curves. Trials are drawn by a seed, so a failure can be tried
again.
"""

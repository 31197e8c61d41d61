"""What finetune() gives must stay as it is: its outputs in files, the runs they are of, and the comparison.

``cases`` holds the runs, ``outputs`` makes one of them and collects what it gives, ``comparison`` compares that with a
file. ``python -m tests.golden`` writes the files anew.
"""
